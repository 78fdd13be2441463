"""Configs from YAML files and `key=value` overrides: merged by OmegaConf into plain dataclasses."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from avvp_dist.config.option import Key, keys_of, nearest
from avvp_dist.config.removed import replacement
from avvp_dist.errors import ConfigError

T = TypeVar("T")

_COMMAND_LINE = "command line"
_MERGE = "tag:yaml.org,2002:merge"


@runtime_checkable
class Conflicting(Protocol):
    """A config, or a section of one, that has keys which may not go together."""

    def conflicts(self) -> list[str]:
        """Faults of such keys, each naming them and what to do."""


def load(
    kind: type[T],
    files: str | Path | Sequence[str | Path] | None,
    overrides: Sequence[str] = (),
) -> T:
    """Merge the defaults of `kind`, then YAML `files` in turn, then `key=value` overrides.

    Args:
        files: paths, or names of packaged configs such as `pretrain/multi`.

    Raises:
        ConfigError: with every fault, each naming its file and key.
    """
    faults: list[str] = []
    config = OmegaConf.structured(kind)
    keys = {key.name: key for key in keys_of(kind)}
    listed = [files] if isinstance(files, str | Path) else files or []
    for source, name, value in _values(listed, overrides, faults):
        key = keys.get(name) or _mapping(name, keys)
        if key is None:
            faults.append(f"{source}: {_unknown(name, list(keys))}")
            continue
        if key.is_list and isinstance(value, str):
            typed = source == _COMMAND_LINE and value.startswith("[")
            value = _parsed_list(value) if typed else [value]  # one alone needs no brackets
        try:
            value = _without_tilde(value)
        except RuntimeError as error:
            faults.append(f"{source}: {name}={value}: {error}")
            continue
        before = OmegaConf.select(config, name)
        try:
            OmegaConf.update(config, name, value)
            OmegaConf.select(config, name, throw_on_missing=True)
        except OmegaConfBaseException as error:
            faults.append(f"{source}: {name}={value}: {str(error).splitlines()[0]}")
            OmegaConf.update(config, name, before)
    for key in keys.values():
        faults += key.faults(_plain(config, key))
    if not faults:
        made: T = OmegaConf.to_object(config)  # type: ignore[assignment]  # of the schema's class
        faults += [
            fault
            for section in (made, *vars(made).values())
            if isinstance(section, Conflicting)
            for fault in section.conflicts()
        ]
    if faults:
        raise ConfigError("; ".join(faults), remedy="--help lists the keys")
    return made


def to_yaml(config: object) -> str:
    """The config as YAML that `--config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_config(name: str | Path, ending: str = ".yaml") -> str:
    """Read the file at a path, or else the packaged config of that name.

    Args:
        name: such as `pretrain/multi`; with the ending `.json` such as `deepspeed/large_buckets`.

    Raises:
        ConfigError: if there is neither; it names the packaged configs that are nearest.
        OSError: if the file cannot be read.
    """
    if Path(name).exists():
        return Path(name).read_text("utf-8-sig")
    packaged = resources.files("avvp_dist") / "configs" / f"{name}{ending}"
    if packaged.is_file():
        return packaged.read_text("utf-8")
    stem = "/".join(Path(name).with_suffix("").parts[-2:])
    near = difflib.get_close_matches(stem, packaged_configs(ending))
    hint = f", did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"{name} does not exist{hint}")


def packaged_configs(ending: str = ".yaml") -> list[str]:
    """Names of the configs that come with the package, such as `pretrain/multi`."""
    folders = (resources.files("avvp_dist") / "configs").iterdir()
    return sorted(
        f"{folder.name}/{file.name.removesuffix(ending)}"
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(ending)
    )


def _values(
    files: Sequence[str | Path], overrides: Sequence[str], faults: list[str]
) -> Iterator[tuple[str, str, object]]:
    """Where a value was given, its key and the value, in the order in which they count."""
    for file in files:
        try:
            tree = yaml.load(read_config(file), TextLoader)
        except ConfigError as error:
            faults.append(f"--config: {error}")
        except Exception as error:  # YAML has many ways to be wrong, each with its own class
            faults.append(f"--config: {file}: {' '.join(str(error).split())}")
        else:
            yield from ((str(file), key, value) for key, value in _leaves(tree))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            faults.append(f"{override}: overrides are KEY=VALUE")
            continue
        yield _COMMAND_LINE, key, value


def _without_tilde(value: object) -> object:
    """A value, or a list of them, with the home folder in the place of `~`.

    Raises:
        RuntimeError: if there is no such home.
    """
    if isinstance(value, list):
        return [_without_tilde(one) for one in value]
    if isinstance(value, str) and value.startswith("~"):
        return str(Path(value).expanduser())
    return value


def _leaves(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(tree, dict):
        yield prefix.removesuffix("."), tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}{key}.")


def _parsed_list(text: str) -> object:
    try:
        return yaml.load(text, TextLoader)
    except yaml.YAMLError:
        return text


class TextLoader(yaml.SafeLoader):
    """YAML whose scalars are text or null: OmegaConf turns text into the type of its key.

    YAML itself would make 7 of 007, 202686 of 2026_8_6, and false of the folder `no`.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012, its type is that of an instance in PyYAML
        first: [one for one in resolvers if one[0] in ("tag:yaml.org,2002:null", _MERGE)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, whose keys are different ones."""
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {twice}", node.start_mark
            )
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def _mapping(name: str, keys: Mapping[str, Key]) -> Key | None:
    """The key that has `name` as one of its own keys, if there is one."""
    key = keys.get(name.rpartition(".")[0])
    return key if key is not None and key.is_mapping else None


def _plain(config: object, key: Key) -> object:
    value = OmegaConf.select(config, key.name)  # type: ignore[arg-type]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _unknown(name: str, known: Sequence[str]) -> str:
    return replacement(name, known) or f"unknown key {name}, did you mean {nearest(name, known)}?"
