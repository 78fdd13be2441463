"""Reference pages of the documentation: every key of every stage, every room's docstrings.

A hook of MkDocs. The pages exist in memory alone, so they cannot fall behind the code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import avvp_dist
from avvp_dist.stages import STAGES

PACKAGE = Path(avvp_dist.__file__).parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference pages to the navigation."""
    assert config.nav is not None
    config.nav += [
        {"Configuration": [{title: path} for path, (title, _) in configuration().items()]},
        {"API": [{title: path} for path, (title, _) in api().items()]},
    ]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the reference pages to the site."""
    for path, (_, text) in {**configuration(), **api()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def configuration() -> dict[str, tuple[str, str]]:
    """Title and text of each page of the configuration reference, by path."""
    return {}


def api() -> dict[str, tuple[str, str]]:
    """Title and text of each page of the API reference, by path: one for each room."""
    pages = {}
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        pages[f"api/{folder.name}.md"] = (folder.name, f"# {folder.name}\n\n::: avvp_dist.{folder.name}\n")
    modules = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    blocks = [
        f"## {name}\n\n::: avvp_dist.{name}\n    options:\n      heading_level: 3\n"
        for name in modules
    ]
    pages["api/avvp_dist.md"] = ("single modules", "\n".join(["# Single modules\n", *blocks]))
    return pages
