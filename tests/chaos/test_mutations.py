"""The tests are tried on broken code: without a safeguard, a test that names it must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).parents[2]
SHARDS, FILES, QUERY = "sharpaudit/tables/shards.py", "sharpaudit/tables/files.py", "sharpaudit/tables/query.py"
OF_SHARDS = "tests/tables/test_shards.py"
CASES = {
    "sync reaches the disk": (FILES, "os.fsync(descriptor)\n", "pass\n", OF_SHARDS),
    "data is synced": (
        SHARDS,
        '            self._files.sync(attempt)\n            crash_point("attempt.synced"',
        '            crash_point("attempt.synced"',
        OF_SHARDS,
    ),
    "the folder is synced": (
        SHARDS,
        "        self._files.sync_folder(self.folder)\n",
        "",
        OF_SHARDS,
    ),
    "rows are counted": (SHARDS, "if file.metadata.num_rows != manifest.rows:", "if False:", OF_SHARDS),
    "what was written is read back": (
        SHARDS,
        "if hashlib.sha256(written).hexdigest() != sha256 or not",
        "if False and not",
        OF_SHARDS,
    ),
    "numbers are finite in a shard": (
        SHARDS,
        "if pa.types.is_floating(values.type) and not",
        "if False and not",
        OF_SHARDS,
    ),
    "numbers are finite in a query": (
        QUERY,
        'return f"CASE WHEN isfinite({name}) THEN {name} END"',
        "return name",
        "tests/pipelines/test_query.py",
    ),
    "audit.duckdb is synced": (QUERY, "        disk.sync(attempt)\n", "", "tests/tables/test_query_door.py"),
    "a manifest holds for its file": (
        SHARDS,
        "if len(data) != manifest.bytes or hashlib",
        "if False and hashlib",
        OF_SHARDS,
    ),
    "a manifest belongs to its folder": (
        SHARDS,
        "if manifest.fingerprint != self.fingerprint or",
        "if False and",
        OF_SHARDS,
    ),
    "the lock is asked before a manifest": (
        SHARDS,
        "            self._guard()\n            self._files.link",
        "            self._files.link",
        OF_SHARDS,
    ),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources and tests in a folder of their own."""
    copied = tmp_path_factory.mktemp("tree")
    for name in ("sharpaudit", "pipelines", "tests", "configs", "docs"):
        shutil.copytree(ROOT / name, copied / name, ignore=shutil.ignore_patterns("__pycache__", "model"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copied)
    return copied


def failures(tree: Path, tests: str) -> tuple[int, str]:
    """Exit code and output of these tests on the sources of the tree."""
    call = [sys.executable, "-m", "pytest", "-x", "-m", "not chaos and not gpu", tests]
    made = subprocess.run(
        call, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False
    )
    return made.returncode, made.stdout


@pytest.mark.parametrize("tests", sorted({case[3] for case in CASES.values()}))
def test_the_copied_tree_passes(tree: Path, tests: str) -> None:
    code, output = failures(tree, tests)
    assert code == 0, output


@pytest.mark.parametrize("name", CASES)
def test_without_a_safeguard_a_test_fails(tree: Path, name: str) -> None:
    path, old, new, tests = CASES[name]
    source = (tree / path).read_text()
    assert source.count(old) == 1
    (tree / path).write_text(source.replace(old, new))
    try:
        code, output = failures(tree, tests)
    finally:
        (tree / path).write_text(source)
    # 1: tests ran and failed; anything else would be a tree that does not even load.
    assert code == 1, output
