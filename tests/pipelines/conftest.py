"""One small testbed and one uninterrupted audit of it for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sharpaudit.lab.analytic import write
from tests.support.audits import CONFIG, SIZES, audit


@pytest.fixture(scope="session")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write(folder / "testbed", SIZES)
    path = folder / "audit.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def clean(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "run"
    audit(config_path, root)
    return root


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    """The finished audit in another folder, for tests that change it."""
    return Path(shutil.copytree(clean, tmp_path / "elsewhere" / clean.name))
