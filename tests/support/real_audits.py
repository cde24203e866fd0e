"""A whole audit of a diffusers model of a few thousand random weights, and when two of them agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.flow.outcome import Outcome
from sharpaudit.images import encode_png
from sharpaudit.lab.analytic import captions
from sharpaudit.matches.build import build_index
from sharpaudit.matches.sources.base import ReferencePicture
from tests.support.tiny_models import write_model

Tables = dict[str, list[dict[str, Any]]]
SHARPNESS_ROUNDING = 0.1
"""Relative. Sharpness is a difference of differences, and small where random weights hardly bend: rounding of 1e-7 in a
prediction, which kernels for batches of other sizes have, becomes hundredths of it. Of a trained network it agrees
within 1e-4 as well (lab/test_shipped.py)."""
CONFIG = """
[model]
path = "model"
batch_size = 16
[corpus]
audit = "audit.txt"
[calibration]
file = "harmless.txt"
[scores]
components = 5
[triage]
alpha = 0.05
controls = 3
[samples]
steps = 3
per_prompt = 2
band_prompts = 4
[matches]
index = "index"
[run]
rows_per_shard = 16
samples_per_shard = 6
"""


def write_audit(folder: Path, prediction: str) -> Path:
    """Model, prompts, index and configuration in the folder; returns the configuration's path."""
    write_model(folder / "model", prediction)
    every = captions(0)
    (folder / "audit.txt").write_text("\n".join(every[:30]) + "\n")
    (folder / "harmless.txt").write_text("\n".join(every[30:130]) + "\n")
    noise = [np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8) for i in range(5)]
    pictures = (ReferencePicture(f"t{i}", "noise", None, "", encode_png(pixels)) for i, pixels in enumerate(noise))
    build_index(folder / "index", "pixels-16", pictures)
    path = folder / "audit.toml"
    path.write_text(CONFIG)
    return path


def assert_same_scores(
    one: Tables, two: Tables, rounding: float = 1e-4, sharpness_rounding: float = SHARPNESS_ROUNDING
) -> None:
    """The same keys and statuses, and values within rounding, relative."""
    left, right = (keyed(made["scores"], "prompt_id", "metric") for made in (one, two))
    assert left.keys() == right.keys()
    for key, row in left.items():
        assert row["status"] == right[key]["status"] == "ok"
        relative = rounding if key[1] != "sharpness" else sharpness_rounding
        assert right[key]["value"] == pytest.approx(row["value"], rel=relative)


def assert_same_within_rounding(
    outcome: Outcome, one: Tables, two: Tables, sharpness_rounding: float = SHARPNESS_ROUNDING
) -> None:
    """The same scores within 1e-4, and the same flags but for borderline prompts. outcome: of the first run."""
    assert outcome.facts["reconciles"]
    assert_same_scores(one, two, sharpness_rounding=sharpness_rounding)
    left, right = (keyed(made["triage"], "prompt_id") for made in (one, two))
    assert left.keys() == right.keys()
    borderline = set(outcome.facts["borderline"])
    for key, row in left.items():
        if key[0] not in borderline:
            assert (row["flagged"], row["status"]) == (right[key]["flagged"], right[key]["status"])


def keyed(rows: list[dict[str, Any]], *key: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows by the values of these columns."""
    return {tuple(row[name] for name in key): row for row in rows}
