"""The configs themselves: every key explains itself, every size can be built."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from avvp_dist import config as configs

SECTIONS = [
    kind for kind in vars(configs).values() if isinstance(kind, type) and is_dataclass(kind)
]


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_key_has_one_line_of_help(kind: Any) -> None:
    types = get_type_hints(kind)
    for key in fields(kind):
        if not is_dataclass(types[key.name]):
            assert key.metadata["help"] and "\n" not in key.metadata["help"], key.name


def test_heads_divide_the_width_of_every_size() -> None:
    for layers, width, heads, feedforward in configs.SIZES.values():
        assert width % heads == 0 and feedforward > width and layers > 0
