"""Write the sources of the documentation site: these pages, and the reference made from the code.

python docs/reference.py DIR

DIR gets a copy of the pages, one page for each stage with all of its keys, one page for each room
with its docstrings, and a `mkdocs.yml` that lists them all.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

import avvp_dist
from avvp_dist.config.option import Key, keys_of
from avvp_dist.stages import STAGES, Stage

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out / "docs", ignore=shutil.ignore_patterns("*.py"))
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    for title, pages in (("Configuration", stage_pages()), ("API", room_pages())):
        settings["nav"].append({title: [{name: path} for path, (name, _) in pages.items()]})
        for path, (_, text) in pages.items():
            (out / "docs" / path).parent.mkdir(exist_ok=True)
            (out / "docs" / path).write_text(text)
    settings["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    (out / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False))


def stage_pages() -> dict[str, tuple[str, str]]:
    """Title and text of each page of the configuration reference, by path: one for each stage."""
    return {
        f"configuration/{stage.name}.md": (stage.name, "\n".join(_stage_lines(stage)))
        for stage in STAGES.values()
        if stage.config is not None
    }


def room_pages() -> dict[str, tuple[str, str]]:
    """Title and text of each page of the API reference, by path: one for each room."""
    package = Path(avvp_dist.__file__).parent
    names = sorted(path.stem for path in package.glob("*.py") if not path.stem.startswith("__"))
    text = "# Single modules\n\n" + "\n".join(
        f"## {name}\n\n::: avvp_dist.{name}\n    options: {{heading_level: 3}}\n" for name in names
    )
    pages = {"api/modules.md": ("single modules", text)}
    for room in sorted(path.parent.name for path in package.glob("*/__init__.py")):
        pages[f"api/{room}.md"] = (room, f"# avvp_dist.{room}\n\n::: avvp_dist.{room}\n")
    return pages


def _stage_lines(stage: Stage) -> Iterator[str]:
    assert stage.config is not None
    yield f"# avvp {stage.name}\n"
    yield f"{stage.help}\n"
    yield f"```sh\n{stage.example}\n```\n"
    sections: dict[str, list[Key]] = {}
    for key in keys_of(stage.config):
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section, keys in sections.items():
        yield f"## {section or 'Keys'}\n"
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        yield from map(_row, keys)
        yield ""


def _row(key: Key) -> str:
    option = key.option
    name = key.type.__name__ if isinstance(key.type, type) else str(key.type)
    values = " or ".join(f"`{choice}`" for choice in option.choices) or name
    if option.minimum is not None and option.maximum is not None:
        values += f", {option.minimum:g} to {option.maximum:g}"
    elif option.minimum is not None:
        values += f", at least {option.minimum:g}"
    elif option.maximum is not None:
        values += f", at most {option.maximum:g}"
    default = "required" if option.required else f"`{_shown(key.default)}`"
    return f"| `{key.name}` | {_escaped(values)} | {default} | {_escaped(option.help)} |"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value) if value != "" else '""'


def _escaped(text: str) -> str:
    """Text whose characters mean nothing to Markdown, but for backticks that mark code."""
    parts = text.split("`")
    for plain in range(0, len(parts), 2):
        for character in "\\*_{}[]<>|":
            parts[plain] = parts[plain].replace(character, f"\\{character}")
    return "`".join(parts)


if __name__ == "__main__":
    main()
