"""A tiny model of each prediction type, and a copy to break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.support.tiny_models import PREDICTIONS, open_model, states, write_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each prediction type; read only."""
    root = tmp_path_factory.mktemp("models")
    return {prediction: write_model(root / prediction, prediction) for prediction in PREDICTIONS}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the epsilon model, to break."""
    return Path(shutil.copytree(folders["epsilon"], tmp_path / "model"))


@pytest.fixture(scope="session")
def whole(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    """All numbers of the epsilon model."""
    return states(open_model(folders["epsilon"]))
