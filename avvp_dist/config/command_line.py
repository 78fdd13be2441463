"""The command line of a stage: `--config`, `key=value`, `--key value`, `--help`, `--print-config`.

Nothing heavy is imported here, so that `--help` and a typing error answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn, TypeVar

from avvp_dist.config.files import load, to_yaml
from avvp_dist.config.option import Key, keys_of
from avvp_dist.errors import ConfigError

T = TypeVar("T")

_KEY_VALUE = re.compile(r"[A-Za-z_][\w.]*=")


def parse(
    kind: type[T], description: str, argv: Sequence[str] | None = None, *, prog: str | None = None
) -> T:
    """Parse the command line of a stage.

    It takes `--config FILE` any number of times and then the stage's keys, as `key=value` or
    `--key value`. A list takes several words, a switch needs none (`--deep`, `--no-skip`), and
    bare words are values of the stage's positional key if it has one.
    Prints and exits for `--help` and `--print-config`.

    Raises:
        ConfigError: with every fault, each naming its key.
    """
    return _parse(kind, _parser(kind, description, prog), argv)[0]


def parse_training(
    kind: type[T], description: str, argv: Sequence[str] | None = None, *, prog: str | None = None
) -> tuple[T, int]:
    """Parse the command line of a training, which also takes `--dry-run` and `--ranks`.

    Returns:
        The config, and the number of ranks of the dry run: of `--ranks`, or else of the launcher.
        0 for a training that is not dry.

    Raises:
        ConfigError: with every fault, each naming its key.
    """
    parser = _parser(kind, description, prog, " [--dry-run [--ranks N]]")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan and train nothing"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="number of ranks of the dry run")
    config, arguments = _parse(kind, parser, argv)
    ranks: int | None = arguments.ranks
    if ranks is not None and (not arguments.dry_run or ranks < 1):
        raise ConfigError(
            f"--ranks {ranks}: a --dry-run can plan for 1 rank or more",
            remedy="A launcher says how many ranks train",
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    return config, (ranks or launched) if arguments.dry_run else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, remedy="--help lists the keys")


def _parser(kind: type, description: str, prog: str | None, usage: str = "") -> _Parser:
    positional = "".join(
        f" {key.name.upper()}{' ...' if key.is_list else ''}" for key in _positional(kind)
    )
    parser = _Parser(
        prog=prog,
        description=description,
        usage=f"%(prog)s [--config FILE] [--print-config]{usage} [KEY=VALUE ...]{positional}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys:\n" + "\n".join(_help_lines(kind)),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="YAML with any of the keys below, or the name of a packaged config such as "
        "pretrain/multi; given more than once, the last value of a key counts",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and exit"
    )
    # The deepspeed launcher appends it; LOCAL_RANK holds it too.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="any of the keys below")
    return parser


def _parse(
    kind: type[T], parser: _Parser, argv: Sequence[str] | None
) -> tuple[T, argparse.Namespace]:
    keys = {key.name: key for key in keys_of(kind)}
    words = _options_as_overrides(keys, sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_intermixed_args(words)
    config = load(kind, arguments.config or [], _bare_words_as_overrides(kind, arguments.overrides))
    if arguments.print_config:
        print(to_yaml(config), end="")
        sys.exit(0)
    return config, arguments


def _options_as_overrides(keys: Mapping[str, Key], argv: Sequence[str]) -> list[str]:
    """`argv` with `KEY=VALUE` in place of `--KEY VALUE` and `--KEY=VALUE`, for `keys` alone."""
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    words = deque(argv)
    while words:
        word = words.popleft()
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        key = keys.get(name) if word.startswith("--") else None
        negated = keys.get(name.removeprefix("no_")) if word.startswith("--no-") else None
        if key is not None and key.type is bool and not equals:
            given = words and words[0].lower() in ("true", "false")
            rest.append(f"{key.name}={words.popleft() if given else 'true'}")
        elif key is not None and key.is_list and not value.startswith("["):
            values = [value] if equals else list(_values_of_list(words))
            if len(values) == 1 and values[0].startswith("["):
                rest.append(f"{key.name}={values[0]}")
            else:
                lists.setdefault(key.name, []).extend(values)
        elif key is not None:
            rest.append(f"{key.name}={value if equals or not words else words.popleft()}")
        elif negated is not None and negated.type is bool and not equals:
            rest.append(f"{negated.name}=false")
        else:
            rest.append(word)
    return rest + [f"{name}={json.dumps(values)}" for name, values in lists.items()]


def _values_of_list(words: deque[str]) -> Iterator[str]:
    """The next word, and those after it up to an option or an override."""
    if words:
        yield words.popleft()
    while words and not words[0].startswith("--") and not _KEY_VALUE.match(words[0]):
        yield words.popleft()


def _bare_words_as_overrides(kind: type, words: Sequence[str]) -> list[str]:
    """`words` with those that are no `KEY=VALUE` given to the positional key, if there is one."""
    for key in _positional(kind):
        bare = [word for word in words if not _KEY_VALUE.match(word)]
        given = [word for word in words if _KEY_VALUE.match(word)]
        if len(bare) > 1 and not key.is_list:
            raise ConfigError(f"{' '.join(bare)}: one {key.name} is expected, not {len(bare)}")
        if bare:
            given.append(f"{key.name}={json.dumps(bare) if key.is_list else bare[0]}")
        return given
    return list(words)


def _positional(kind: type) -> Iterator[Key]:
    return (key for key in keys_of(kind) if key.option.positional)


def _help_lines(kind: type) -> Iterator[str]:
    for key in keys_of(kind):
        default = "required" if key.option.required else f"default {key.default!r}"
        yield f"  {key.name}: {key.type_name}, {default}"
        yield f"      {key.option.help}"
