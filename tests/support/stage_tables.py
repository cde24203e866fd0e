"""What workers of stages are tried on: a small configuration, the analytic model, and an index in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from sharpaudit.config import AuditConfig, override, parse
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.index import ReferenceIndex, open_index
from sharpaudit.matches.sources.base import ReferencePicture

TREE = {
    "model": {"path": "model.json", "batch_size": 4},
    "corpus": {"audit": "prompts.csv"},
    "calibration": {"file": "harmless.csv"},
    "matches": {"index": "index"},
    "samples": {"steps": 4},
}


def config(*overrides: str) -> AuditConfig:
    return override(parse(TREE, "a test"), overrides)


def prompts(n: int, word: str = "prompt") -> pa.Table:
    return pa.table({"prompt_id": [f"{i:032x}" for i in range(n)], "prompt": [f"{word} {i}" for i in range(n)]})


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def index(folder: Path, n: int) -> ReferenceIndex:
    """Of the pictures `pixels(0)` to `pixels(n - 1)`, which are called r0, r1, ..."""
    pictures = [ReferencePicture(f"r{i}", "a set", "", f"{i}.png", encode_png(pixels(i))) for i in range(n)]
    build_index(folder / "index", "pixels-16", pictures)
    return open_index(folder / "index", "pixels-16")
