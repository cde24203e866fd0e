"""How well each metric tells the lab's memorised prompts from its harmless ones, with intervals.

Single-seed figures are those of audits that differ in their seed alone: each fits the subspace anew. The figures at
n = 4 are one audit's with four seeds. Positives are the prompts labelled memorised, exact plants and templates apart;
negatives are the harmless prompts that were never planted. Neighbours and partly memorised prompts are in neither.

Shapes: S seeds, N prompts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sharpaudit.config import ModelConfig, ScoresConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.lab.captions import COLOURS
from sharpaudit.scores.base import Metric
from sharpaudit.scores.metrics import named
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.statistics.detection import Figure, Group, auc, figure, tpr_at_fpr

SINGLE_SEEDS = {"residual_gap": 16, "noise_gap": 16, "sharpness": 4}
SEVERAL = 4
DETECTORS = {"development": "detectors_development.json", "test": "detectors_test.json"}
SCORES = ScoresConfig()
"""An audit's defaults."""
BATCH = 64
STATISTICS = {"auc": (auc, False), "tpr_at_1_percent_fpr": (tpr_at_fpr(0.01), True)}
CAPTIONS: dict[str, tuple[bool, ...]] = {"all": (True, False), "naming a colour": (True,), "naming none": (False,)}


@dataclass(frozen=True)
class Truth:
    """A row of truth.csv."""

    prompt: str
    split: str
    family: str
    kind: str
    label: str

    @property
    def never_planted(self) -> bool:
        """Whether no picture was planted under this prompt."""
        return self.kind in ("seen", "unseen")


def write_table(folder: Path, split: str, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Measure a split of a lab folder and write the table beside its truth; returns the lines."""
    truth = [row for row in read_truth(folder) if row.label in ("memorised", "harmless")]
    fit = [row.prompt for row in truth if row.split == "fit"]
    judged = [row for row in truth if row.split == split and (row.label == "memorised" or row.never_planted)]
    denoiser = load_denoiser(ModelConfig(path=str(folder / "model"), dtype="float32", device="cpu"))
    lines = table(judged, *measure(denoiser, fit, [row.prompt for row in judged], say))
    (folder / DETECTORS[split]).write_text(json.dumps(lines, indent=1) + "\n")
    return lines


def read_truth(folder: Path) -> list[Truth]:
    """The rows of a lab's truth.csv. Raises UserError where there is none."""
    if not (folder / "truth.csv").is_file():
        raise UserError(f"{folder}: no truth.csv there; `sharpaudit lab label` writes it")
    with (folder / "truth.csv").open(encoding="utf-8", newline="") as stream:
        return [Truth(*(row[name] for name in Truth.__dataclass_fields__)) for row in csv.DictReader(stream)]


def names_colour(prompt: str) -> bool:
    """Whether a caption of the lab names the colour of the background."""
    return any(f"{colour} background" in prompt or prompt.endswith(f"on {colour}") for colour in COLOURS)


def measure(
    denoiser: Denoiser, fit: Sequence[str], prompts: Sequence[str], say: Callable[[str], object]
) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float64]]]:
    """Every metric at single seeds, with shape (S, N), and at n = 4, with shape (1, N)."""
    single: dict[str, list[list[float]]] = {name: [] for name in SINGLE_SEEDS}
    for seed in range(max(SINGLE_SEEDS.values())):
        names = [name for name in SINGLE_SEEDS if seed < SINGLE_SEEDS[name]]
        for name, values in _audit(denoiser, fit, prompts, seed, 1, named(names)).items():
            single[name].append(values)
        say(f"seed {seed}: {', '.join(names)}")
    several = _audit(denoiser, fit, prompts, 0, SEVERAL, named(list(SINGLE_SEEDS)))
    return (
        {metric: np.array(rows) for metric, rows in single.items()},
        {metric: np.array([row]) for metric, row in several.items()},
    )


def _audit(
    denoiser: Denoiser, fit: Sequence[str], prompts: Sequence[str], seed: int, n: int, metrics: tuple[Metric, ...]
) -> dict[str, list[float]]:
    """The metrics of each prompt as an audit computes them: means over n seeds."""
    config = ScreenConfig(n, seed, SCORES.step, BATCH)
    known = unconditional_predictions(denoiser, config, places(metrics))
    moved = [row for row in differences(denoiser, fit, known, config) if not isinstance(row, Status)]
    subspace = fit_subspace(np.stack(moved), SCORES.components)
    rows = screen(denoiser, prompts, known, subspace, config, metrics)
    scored = [row for row in rows if not isinstance(row, Status)]
    if len(scored) != len(rows):
        raise MemoryError(f"{len(rows) - len(scored)} prompts could not be scored")
    return {m.name: [float(np.mean(row.seed_values[m.name])) for row in scored] for m in metrics}


def table(
    truth: Sequence[Truth],
    single: dict[str, npt.NDArray[np.float64]],
    several: dict[str, npt.NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """One line per metric, number of seeds, kind of plant, kind of caption and statistic. truth: the measured rows."""
    lines = []
    for values, n in ((single, 1), (several, SEVERAL)):
        for (metric, values_SN), plants, (captions, colour) in product(
            values.items(), ("exact", "template"), CAPTIONS.items()
        ):
            chosen = [i for i, row in enumerate(truth) if names_colour(row.prompt) in colour]
            memorised = [i for i in chosen if truth[i].label == "memorised" and truth[i].kind == plants]
            harmless = [i for i in chosen if truth[i].label == "harmless" and truth[i].never_planted]
            if not memorised or not harmless:
                continue
            sizes = {"memorised": len(memorised), "harmless": len(harmless)}
            line = {"metric": metric, "n": n, "seeds": len(values_SN), "plants": plants, "captions": captions} | sizes
            groups = [_group(truth, values_SN, rows) for rows in (memorised, harmless)]
            for statistic, (function, rate) in STATISTICS.items():
                lines.append(line | {"statistic": statistic} | _columns(figure(function, *groups, rate=rate)))
    return lines


def _group(truth: Sequence[Truth], values_SN: npt.NDArray[np.float64], rows: list[int]) -> Group:
    return Group(values_SN[:, rows], np.array([truth[i].family for i in rows]))


def _columns(found: Figure) -> dict[str, float | None]:
    return {
        "mean": found.mean,
        "sd": None if np.isnan(found.sd) else found.sd,
        "minimum": found.minimum,
        "low": found.interval.low,
        "high": found.interval.high,
    }
