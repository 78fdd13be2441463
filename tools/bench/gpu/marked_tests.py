"""The tests marked `gpu`, run by pytest."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.bench.gpu.rows import Note, Setting, Tests

ROOT = Path(__file__).resolve().parents[3]
FILES = (
    "tests/runtime/test_ranks.py",
    "tests/training/test_engine.py",
    "tests/training/test_trainer.py",
)
"""Files that hold them: to collect all tests takes longer than to run these."""


def run(setting: Setting, deadline: float) -> Iterator[Tests | Note]:
    """Run them on the GPU; on a CPU, where `make test` runs them all, those of one file."""
    os.chdir(ROOT)
    # cuBLAS reads its variable once, before the test of what is deterministic sets it.
    variables = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    os.environ.update(variables)
    report = setting.folder / "tests.xml"
    options = ["-m", "gpu", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    options += [f"--junitxml={report}", f"--basetemp={setting.folder / 'pytest'}"]
    files = FILES if setting.device == "gpu" else FILES[:1]
    code = pytest.main([*options, *files])
    suite = next(ET.parse(report).getroot().iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    yield Tests(count["tests"] - failed - count["skipped"], failed, count["skipped"])
    for case in suite.iter("testcase"):
        for found in (*case.findall("failure"), *case.findall("error")):
            line = found.get("message", "").partition("\n")[0]
            yield Note(f"{case.get('name')}: {line}", failed=True)
    if code and not failed:
        yield Note(f"pytest ended with code {code}", failed=True)
