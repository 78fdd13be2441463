"""Tars of media for the tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Content = bytes | Path | dict[str, Any]


def make_tar(path: Path, members: Sequence[tuple[str, Content]]) -> Path:
    """Write a tar of members in their order: bytes, files, or JSON objects."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            if isinstance(content, Path):
                content = content.read_bytes()
            elif isinstance(content, dict):
                content = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
