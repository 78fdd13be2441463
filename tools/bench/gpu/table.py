"""The figures of a check as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from tools.bench.gpu.rows import Figures


def printed(figures: Mapping[str, Sequence[Figures]]) -> str:
    """A table for each section: a row for each of its rows, or for each figure of the only one."""
    return "\n".join(
        f"\n{name}\n\n{_rows(rows) if len(rows) > 1 else _columns(rows[0])}"
        for name, rows in figures.items()
    )


def _rows(rows: Sequence[Figures]) -> str:
    names = list(asdict(rows[0]))
    head = f"| {' | '.join(_title(name) for name in names)} |"
    lines = [
        f"| {' | '.join(_cell(name, value) for name, value in asdict(row).items())} |"
        for row in rows
    ]
    return "\n".join([head, "|---" * len(names) + "|", *lines, ""])


def _columns(row: Figures) -> str:
    lines = [f"| {_title(name)} | {_cell(name, value)} |" for name, value in asdict(row).items()]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _title(name: str) -> str:
    return name.replace("_", " ")


def _cell(name: str, value: object) -> str:
    if name.endswith("bytes") and isinstance(value, int):
        return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None or value == "":
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
