"""The wheel in an empty environment, built once for all tests that use it."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.shown import ROOT, call

LOCKED = (sys.platform, platform.machine(), sys.version_info[:2]) == ("linux", "x86_64", (3, 11))
"""Whether the lock is of this platform; elsewhere pip resolves what the wheel asks for."""


@pytest.fixture(scope="session")
def wheel_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel and what it needs, and nothing else."""
    # Of all test processes the first builds it: their temporary folders have one parent.
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    programs = base / "wheel" / "venv" / "bin"
    with FileLock(base / "wheel.lock"):
        if not (base / "wheel" / "whole").exists():
            _build(base / "wheel")
            (base / "wheel" / "whole").touch()
    return programs


def _build(folder: Path) -> None:
    folder.mkdir()
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder / "dist", ROOT, cwd=folder)
    wheel = next((folder / "dist").glob("sharpaudit-*.whl"))
    call(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    install = (python, "-m", "pip", "install", "--quiet", "--no-compile")
    if LOCKED:
        call(*install, "--require-hashes", "--requirement", ROOT / "infra/requirements.lock", cwd=folder)
        call(*install, "--no-deps", wheel, cwd=folder)
    else:
        call(*install, f"{wheel}[cpu]", cwd=folder)
