"""Configs from files and overrides: loading, `--help`, `--print-config`, errors that name the key.

OmegaConf reads YAML and dot-list overrides and checks types; the result is a plain dataclass.
Nothing heavy is imported here, so `--help` and a typing error answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from avvp_dist.errors import ConfigError

T = TypeVar("T")


def parse(kind: type[T], description: str, argv: list[str] | None = None) -> T:
    """Read the command line of an entry point: `--config FILE` ..., then `key=value` overrides,
    which may also be given as `--key value`, more than once if the key is a list.

    Prints and exits for `--help` and `--print-config`.

    Raises:
        ConfigError: with every fault found, each naming its key.
    """
    return _read(kind, _parser(kind, description), argv)[0]


def parse_training(kind: type[T], description: str, argv: list[str] | None = None) -> tuple[T, int]:
    """As `parse`, and the ranks that `--dry-run` asks a plan for: those of `--ranks`, or else of
    the launcher. 0 where training is asked for.

    Raises:
        ConfigError: with every fault found, each naming its key.
    """
    parser = _parser(kind, description, " [--dry-run [--ranks N]]")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan and train nothing"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="of the plan, not of this command")
    config, arguments = _read(kind, parser, argv)
    if arguments.ranks is not None and (not arguments.dry_run or arguments.ranks < 1):
        raise ConfigError(
            f"--ranks {arguments.ranks}: a --dry-run can plan for 1 rank or more",
            remedy="A launcher says how many ranks train",
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    return config, (arguments.ranks or launched) if arguments.dry_run else 0


def _parser(kind: type, description: str, more: str = "") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        usage=f"%(prog)s [--config FILE] [--print-config]{more} [KEY=VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys:\n" + "\n".join(_help_lines(kind)),
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="YAML with any of the keys below; given more than once, the last word counts",
    )
    parser.add_argument("--print-config", action="store_true", help="print the result and exit")
    # The deepspeed launcher appends it; the environment says the same.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="any of the keys below")
    return parser


def _read(
    kind: type[T], parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[T, argparse.Namespace]:
    arguments = parser.parse_intermixed_args(
        _as_overrides(kind, sys.argv[1:] if argv is None else argv)
    )
    config = load(kind, arguments.config or [], arguments.overrides)
    if arguments.print_config:
        print(to_yaml(config), end="")
        sys.exit(0)
    return config, arguments


def _as_overrides(kind: type, argv: list[str]) -> list[str]:
    """`argv` with `KEY=VALUE` in place of `--KEY VALUE` and `--KEY=VALUE`, for keys of `kind`."""
    types = {key: type_ for key, _, type_ in _keys(kind)}
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    words = iter(argv)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key not in types:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if get_origin(types[key]) is list and not value.startswith("["):
            lists.setdefault(key, []).append(value)
        else:
            rest.append(f"{key}={value}")
    return rest + [f"{key}={json.dumps(values)}" for key, values in lists.items()]


def load(
    kind: type[T],
    files: str | Path | Sequence[str | Path] | None,
    overrides: list[str] | None = None,
) -> T:
    """Defaults of `kind`, changed by YAML `files` in turn, changed by `key=value` overrides.

    Raises:
        ConfigError: with every fault found, each naming its key.
    """
    issues: list[str] = []
    config = OmegaConf.structured(kind)
    keys = {key: field for key, field, _ in _keys(kind)}
    lists = {key for key, _, type_ in _keys(kind) if get_origin(type_) is list}
    listed = [files] if isinstance(files, str | Path) else files or []
    for source, values in _sources(listed, overrides or [], issues):
        for key, value in values:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1, 0.0)[0]
                issues.append(f"{source}: unknown key {key}, did you mean {near}?")
                continue
            if key in lists and isinstance(value, str):
                value = [value]  # a list of one needs no brackets
            before = OmegaConf.select(config, key)
            try:
                OmegaConf.update(config, key, value)
                OmegaConf.select(config, key, throw_on_missing=True)
            except OmegaConfBaseException as error:
                issues.append(f"{source}: {key}={value}: {str(error).splitlines()[0]}")
                OmegaConf.update(config, key, before)
    for key, field_ in keys.items():
        issues += _value_faults(key, OmegaConf.select(config, key), field_.metadata)
    if issues:
        raise ConfigError("; ".join(issues), remedy="--help lists the keys")
    made: T = OmegaConf.to_object(config)  # type: ignore[assignment]
    return made


def to_yaml(config: Any) -> str:
    """A config as YAML that `--config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _sources(
    files: Sequence[str | Path], overrides: list[str], issues: list[str]
) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    for file in files:
        try:
            yield str(file), list(_leaves(OmegaConf.to_container(OmegaConf.load(file))))
        except FileNotFoundError:
            issues.append(f"--config: {file} does not exist")
        except Exception as error:  # YAML has many ways to be wrong, each with its own class
            issues.append(f"--config: {file}: {' '.join(str(error).split())}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            issues.append(f"{override}: overrides are KEY=VALUE")
            continue
        # Text stays text, OmegaConf turns it into the key's type; YAML would make 7 of 007.
        yield "command line", [(key, _listed(value) if value.startswith("[") else value)]


def _listed(text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except Exception:  # YAML has many ways to be wrong
        return text


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield prefix.removesuffix("."), tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}{key}.")


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Every key of a config class, its own before inherited ones: dotted name, field, type."""
    types = get_type_hints(kind)
    own = vars(kind).get("__annotations__", {})
    for item in sorted(dataclasses.fields(kind), key=lambda item: item.name not in own):
        if dataclasses.is_dataclass(types[item.name]):
            yield from _keys(types[item.name], f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item, types[item.name]


def _help_lines(kind: type) -> Iterator[str]:
    defaults = kind()
    for key, item, type_ in _keys(kind):
        value: Any = defaults
        for part in key.split("."):
            value = getattr(value, part)
        name = "|".join(item.metadata["choices"]) or getattr(type_, "__name__", str(type_))
        default = "required" if item.metadata["required"] else f"default {value!r}"
        yield f"  {key}: {name}, {default}"
        yield f"      {item.metadata['help']}"


def _value_faults(key: str, value: Any, rules: Any) -> Iterator[str]:
    if rules["required"] and value in ("", []):
        yield f"{key} must be given: {rules['help']}"
        return
    for one in value if isinstance(value, ListConfig) else [value]:
        yield from _one_fault(key, one, rules)


def _one_fault(key: str, value: Any, rules: Any) -> Iterator[str]:
    if rules["choices"] and value not in rules["choices"]:
        near = difflib.get_close_matches(str(value), rules["choices"], 1, 0.0)
        hint = f", did you mean {near[0]}?" if near else ""
        yield f"{key}={value} is not one of {', '.join(rules['choices'])}{hint}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key}={value} is not a finite number"
    elif rules["least"] is not None and value < rules["least"]:
        yield f"{key}={value} is below {rules['least']}"
    elif rules["most"] is not None and value > rules["most"]:
        yield f"{key}={value} is above {rules['most']}"
