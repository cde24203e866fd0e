"""Table 1 of Jeon, Kim and No (ICML 2025) on a lab's test split, beside what the paper found on Stable Diffusion.

All memorised prompts, exact plants and templates, and stated harmless ones, at 1 and 4 pictures; the AUC at 16 pictures
on fewer. One trajectory serves all detectors (trajectory.py).

Shapes: K seeds, N prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bench.lines import Line, table
from pipelines.bench.trajectory import EVALUATIONS, NAMES, Seed, measured, tiled_l2
from sharpaudit.config import ModelConfig, ScoresConfig
from sharpaudit.denoisers.load import load_denoiser, load_tokenizer
from sharpaudit.errors import UserError
from sharpaudit.lab.detectors import CAPTIONS, SEVERAL, Truth, names_colour, read_truth
from sharpaudit.scores.base import step_length
from sharpaudit.seeds import rank_hash
from sharpaudit.statistics.detection import Figure, Group, auc, figure, tpr_at_fpr
from sharpaudit.tables.records import export_file

MANY = 16
HARMLESS = 150
FEW = {"memorised": 40, "harmless": 60}
"""Prompts that get MANY pictures."""
ENOUGH = 100
"""Harmless prompts without which a rate at 1% of them is not told."""
WORDINGS = ("all", "naming none")
"""Captions of the table: all of them, and those that leave the ground free, as captions of photographs do."""
MINUTES = 60.0
"""The most that it may take on 2 cores."""
ROWS = {
    "tiled_l2": ("Tiled l2 (Carlini et al.)", 50),
    "layer_entropy": ("LE (Ren et al.)", 1),
    "attention_entropy": ("AE (Ren et al.)", 50),
    "bright_ending": ("BE (Chen et al.)", 50),
    "noise_gap_1": ("Noise gap (Wen et al.)", 1),
    "noise_gap_5": ("Noise gap (Wen et al.)", 5),
    "noise_gap_50": ("Noise gap (Wen et al.)", 50),
    "sharpness": ("Sharpness (Jeon et al.)", 1),
}
"""The table's rows: what they are called, and steps that are evaluated."""
PAPER: dict[str, dict[str, dict[int, tuple[float, float]]]] = {
    "Stable Diffusion 1.4": {
        "tiled_l2": {4: (0.908, 0.088), 16: (0.940, 0.232)},
        "layer_entropy": {1: (0.846, 0.116), 4: (0.839, 0.130), 16: (0.832, 0.124)},
        "attention_entropy": {1: (0.606, 0.0), 4: (0.628, 0.0), 16: (0.598, 0.0)},
        "bright_ending": {1: (0.986, 0.950), 4: (0.997, 0.980), 16: (0.997, 0.982)},
        "noise_gap_1": {1: (0.976, 0.896), 4: (0.992, 0.944), 16: (0.990, 0.928)},
        "noise_gap_5": {1: (0.991, 0.932), 4: (0.997, 0.978), 16: (0.998, 0.982)},
        "noise_gap_50": {1: (0.983, 0.948), 4: (0.996, 0.982), 16: (0.998, 0.980)},
        "sharpness": {1: (0.987, 0.908), 4: (0.998, 0.982)},
    },
    "Stable Diffusion 2.0": {
        "tiled_l2": {4: (0.792, 0.114), 16: (0.907, 0.114)},
        "layer_entropy": {1: (0.848, 0.0), 4: (0.853, 0.0), 16: (0.851, 0.0)},
        "attention_entropy": {1: (0.809, 0.0), 4: (0.820, 0.0), 16: (0.817, 0.0)},
        "bright_ending": {1: (0.983, 0.908), 4: (0.990, 0.945), 16: (0.990, 0.949)},
        "noise_gap_1": {1: (0.948, 0.739), 4: (0.980, 0.876), 16: (0.983, 0.881)},
        "noise_gap_5": {1: (0.969, 0.885), 4: (0.984, 0.917), 16: (0.987, 0.931)},
        "noise_gap_50": {1: (0.982, 0.904), 4: (0.990, 0.949), 16: (0.991, 0.945)},
        "sharpness": {1: (0.959, 0.740), 4: (0.991, 0.895)},
    },
}
"""AUC and TPR at 1% FPR by number of pictures, as the paper prints them."""


@dataclass(frozen=True)
class Cell:
    """A detector with n pictures of a prompt. captions: as `lab.detectors` names them.

    tpr1: None where there are too few harmless prompts for it.

    seconds: a prompt, of the detector alone but for what was recorded on the way.
    """

    detector: str
    n: int
    captions: str
    memorised: int
    harmless: int
    auc: Figure
    tpr1: Figure | None
    evaluations: int
    seconds: float


def chosen(truth: Sequence[Truth], seed: int) -> tuple[list[Truth], list[Truth]]:
    """All memorised prompts, then harmless ones, each in a drawn order; and those of both that get MANY pictures."""
    ordered = sorted(truth, key=lambda row: rank_hash(seed, "trajectory", row.prompt))
    memorised = [row for row in ordered if row.label == "memorised"]
    harmless = [row for row in ordered if row.label == "harmless" and row.never_planted][:HARMLESS]
    if not memorised or not harmless:
        raise UserError(f"{len(memorised)} memorised and {len(harmless)} harmless prompts: a table needs both")
    return [*memorised, *harmless], [*memorised[: FEW["memorised"]], *harmless[: FEW["harmless"]]]


def trajectories(folder: Path, split: str, out: Path, seed: int = 0) -> list[Cell]:
    """Measure what is not yet there in `out`, and give every cell of the table."""
    rows, few = chosen([row for row in read_truth(folder) if row.split == split], seed)
    config = ModelConfig(path=str(folder.absolute() / "model"), dtype="float32", device="cpu")
    denoiser, tokenizer = load_denoiser(config), load_tokenizer(config)
    step = step_length(ScoresConfig().step, denoiser.latent_shape)
    lengths = {
        row.prompt: found.n_tokens for row, found in zip(rows, tokenizer.tokens([r.prompt for r in rows]), strict=True)
    }

    def at(k: int, some: Sequence[Truth]) -> Seed:
        prompts = [row.prompt for row in some]
        return measured(denoiser, prompts, [lengths[prompt] for prompt in prompts], seed, k, step, out)

    first = [at(k, rows) for k in range(SEVERAL)]
    again = [found.of([rows.index(row) for row in few]) for found in first]
    again += [at(k, few) for k in range(SEVERAL, MANY)]
    return [*cells(rows, first, (1, SEVERAL)), *cells(few, again, (MANY,))]


def cells(rows: Sequence[Truth], seeds: Sequence[Seed], sizes: Sequence[int]) -> Iterator[Cell]:
    """Of each detector and number of pictures: single seeds where it is 1, else all of so many together."""
    for detector, n, captions in product(ROWS, sizes, WORDINGS):
        some = [i for i, row in enumerate(rows) if names_colour(row.prompt) in CAPTIONS[captions]]
        parts = [[i for i in some if rows[i].label == label] for label in ("memorised", "harmless")]
        if (detector not in NAMES and n == 1) or not all(parts):
            continue
        values_SN = scores(detector, seeds, n)
        groups = [Group(values_SN[:, part], np.array([rows[i].family for i in part])) for part in parts]
        tpr = figure(tpr_at_fpr(0.01), *groups) if len(parts[1]) >= ENOUGH else None
        spent = sum(found.seconds[detector] for found in seeds) / len(seeds) / len(rows)
        counts = len(parts[0]), len(parts[1])
        yield Cell(detector, n, captions, *counts, figure(auc, *groups), tpr, n * EVALUATIONS[detector], n * spent)


def scores(detector: str, seeds: Sequence[Seed], n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A detector's scores (K, N): of each seed by itself where n is 1, else of the first n together as the only row."""
    if detector not in NAMES:
        return tiled_l2(np.stack([found.pictures for found in seeds[:n]], axis=1))[None]
    every_KN = np.stack([found.values[detector] for found in seeds])
    return every_KN if n == 1 else every_KN[:n].mean(axis=0, keepdims=True)


def markdown(found: Sequence[Cell]) -> str:
    """A table for each sort of captions, for people, the paper's figures beside ours."""
    pages = []
    for captions in dict.fromkeys(cell.captions for cell in found):
        title = "all captions" if captions == "all" else f"captions {captions}"
        pages.append(f"{title}\n\n{_table([cell for cell in found if cell.captions == captions])}")
    return "\n".join(pages)


def _table(found: Sequence[Cell]) -> str:
    head = ["detector", "steps", "n", "NFE", "ms", "memorised", "harmless", "AUC", "TPR at 1% FPR"]
    lines = []
    for cell in found:
        name, steps = ROWS[cell.detector]
        beside = [_pair(PAPER[model][cell.detector].get(cell.n)) for model in PAPER]
        sizes = [cell.n, cell.evaluations, f"{1000 * cell.seconds:.0f}", cell.memorised, cell.harmless]
        lines.append([name, steps, *sizes, _shown(cell.auc), _shown(cell.tpr1) if cell.tpr1 else "-", *beside])
    return table([*head, *(f"paper, {model}: AUC / TPR" for model in PAPER)], lines)


def _shown(found: Figure) -> str:
    return f"{found.mean:.3f} ({found.interval.low:.3f} to {found.interval.high:.3f})"


def _pair(found: tuple[float, float] | None) -> str:
    return "-" if found is None else f"{found[0]:.3f} / {found[1]:.3f}"


def write(found: Sequence[Cell], folder: Path) -> None:
    """The table for people and for machines: trajectory.md and trajectory.json in the folder."""
    export_file(folder / "trajectory.md", markdown(found).encode())
    export_file(folder / "trajectory.json", f"{json.dumps([asdict(cell) for cell in found], indent=1)}\n".encode())


def bench_lines(found: Sequence[Cell]) -> Iterator[Line]:
    """AUC and TPR of every cell; n: memorised prompts."""
    for cell in found:
        figures = {"auc": cell.auc} | ({"tpr1": cell.tpr1} if cell.tpr1 else {})
        for name, value in figures.items():
            around, free = value.interval, "" if cell.captions == "all" else ".free"
            yield Line(
                f"trajectory.{cell.detector}.n{cell.n}{free}.{name}",
                value.mean,
                "share",
                cell.memorised,
                around.low,
                around.high,
            )
