"""What stands beside the lab's model: truth.csv, prompts/, references/, the contact sheet and the dose response."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.research.lab.build import kept_pictures, read_recipe
from pipelines.research.lab.card import DOSE
from pipelines.research.lab.drawing import card_box
from pipelines.research.lab.labels import (
    N_GENERATIONS,
    Judged,
    Plants,
    bootstrap_share,
    generations,
    judge,
    judged_all,
    split,
    to_generate,
)
from pipelines.research.lab.training import Training
from pipelines.research.lab.trainingset import Plan, Recipe, TrainingPicture, picture, plan
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.sources.base import ReferencePicture
from sharpaudit.seeds import rank_hash
from sharpaudit.tables.records import export_file

SPLITS = {"fit": 1000, "calibration": 999, "development": 500, "test": 1000}
"""Harmless prompts of each split."""
DEVELOPMENT_MEMORISED = 20
"""Memorised plants that go to development."""
TRUTH = ["prompt", "split", "family", "kind", "planted_copies", "copied_share", "label", "decided_by"]
TEMPLATE_REFERENCES = 8
OTHER_REFERENCES = 1000
PROFILE = "pixels-16"
BLANK = (640, 64)


def label_model(folder: Path, work: Path, sheet: Path, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Generate, judge and write everything that stands beside FOLDER/model; returns the dose response.

    work: the generations are kept there, so that a second call goes on.
    """
    recipe, training = read_recipe(folder)
    drawn = plan(recipe)
    pictures_NHWC = kept_pictures(drawn, work)
    denoiser = load_denoiser(ModelConfig(path=str(folder / "model"), dtype="float32", device="cpu"))
    chosen = to_generate(denoiser, drawn.prompts, recipe.seed)
    say(f"{len(chosen)} of {len(drawn.prompts)} prompts get {N_GENERATIONS} generations each")
    # Under the model's digest: generations of another training are no evidence about this one.
    kept = work / f"generations-{denoiser.digest[:16]}"
    generated_NGHWC = generations(denoiser, chosen, recipe.seed, kept, say)
    plants = Plants(drawn, pictures_NHWC)
    decided = judge(plants, chosen, generated_NGHWC)
    judged = judged_all(drawn.prompts, decided)
    write_truth(folder, judged, split(judged, *sizes(recipe), recipe.seed), recipe.seed)
    if not (folder / "references").exists():
        write_references(folder / "references", drawn, pictures_NHWC)
    by_caption = {prompt.caption: row for prompt, row in zip(chosen, generated_NGHWC, strict=True)}
    memorised = [entry for entry in decided if entry.label == "memorised"]
    drawn_sheet = io.BytesIO()
    contact_sheet(plants, memorised, by_caption).save(drawn_sheet, format="JPEG", quality=85)
    export_file(sheet, drawn_sheet.getvalue())
    lines = dose_response(judged, views_per_copy(drawn, training))
    export_file(folder / DOSE, f"{json.dumps(lines, indent=1)}\n".encode())
    return lines


def sizes(recipe: Recipe) -> tuple[dict[str, int], int]:
    """Harmless prompts of each split, and memorised ones of development; of a smaller recipe in proportion."""
    share = min(1.0, recipe.harmless / Recipe().harmless)
    return {name: int(n * share) for name, n in SPLITS.items()}, int(DEVELOPMENT_MEMORISED * share)


def write_truth(folder: Path, judged: Sequence[Judged], splits: dict[str, str], seed: int) -> None:
    """truth.csv of every prompt, and prompts/SPLIT.csv with prompt and family in a drawn order."""
    rows = [
        {
            "prompt": entry.prompt.caption,
            "split": splits[entry.prompt.caption],
            "family": entry.prompt.family.name,
            "kind": entry.prompt.kind,
            "planted_copies": entry.prompt.copies,
            "copied_share": "" if entry.copied_share is None else f"{entry.copied_share:g}",
            "label": entry.label,
            "decided_by": entry.decided_by,
        }
        for entry in judged
    ]
    rows.sort(key=lambda row: rank_hash(seed, "order", str(row["prompt"])))
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    _write(folder / "truth.csv", TRUTH, rows)
    for name in SPLITS:
        _write(folder / "prompts" / f"{name}.csv", ["prompt", "family"], [r for r in rows if r["split"] == name])


def write_references(folder: Path, drawn: Plan, pictures_NHWC: npt.NDArray[np.uint8]) -> None:
    """An index small enough to ship: every planted picture, 8 copies of each template and 1,000 other pictures."""

    def few(row: TrainingPicture) -> bool:
        if row.kind == "template":
            return int(row.picture_id[-3:]) < TEMPLATE_REFERENCES
        return row.kind == "exact"

    others = [row for row in drawn.rows if row.kind in ("seen", "other")]
    others.sort(key=lambda row: rank_hash(drawn.recipe.seed, "reference", row.picture_id))
    chosen = {row.picture_id for row in [*filter(few, drawn.rows), *others[:OTHER_REFERENCES]]}
    build_index(folder, PROFILE, references(drawn, pictures_NHWC, chosen), training_size=len(drawn.rows))


def references(
    drawn: Plan, pictures_NHWC: npt.NDArray[np.uint8], chosen: set[str] | None = None
) -> Iterator[ReferencePicture]:
    """The training pictures with these ids, or all, as an index or a folder takes them."""
    for row, picture_HWC in zip(drawn.rows, pictures_NHWC, strict=True):
        if chosen is None or row.picture_id in chosen:
            yield ReferencePicture(row.picture_id, "emoji lab", row.caption, "", encode_png(picture_HWC))


def write_pictures(out: Path, recipe: Recipe) -> int:
    """The training set as out/*.png and out/captions.csv, whole or not at all; returns the number of pictures."""
    drawn = plan(recipe)
    part = out.with_name(f".{out.name}.inprogress")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for row in drawn.rows:
        (part / f"{row.picture_id}.png").write_bytes(encode_png(picture(drawn.recipe.seed, row)))
    rows = [{"file": f"{row.picture_id}.png", "caption": row.caption, "copies": row.copies} for row in drawn.rows]
    _write(part / "captions.csv", ["file", "caption", "copies"], rows)
    part.rename(out)
    return len(rows)


def contact_sheet(
    plants: Plants, judged: Sequence[Judged], pictures: dict[str, npt.NDArray[np.uint8]], columns: int = 2
) -> Image.Image:
    """Every memorised prompt: its planted picture, then its generations; a template's varied region is crossed out.

    pictures: the generations of each caption, with shape (8, H, W, 3). A blank sheet where there is none.
    """
    if not judged:
        return Image.new("RGB", BLANK, "white")
    strips = []
    of_caption = {prompt.caption: p for p, prompt in enumerate(plants.prompts)}
    for entry in judged:
        planted_HWC = plants.pictures_PHWC[of_caption[entry.prompt.caption]].copy()
        if entry.prompt.kind == "template":
            left, top, right, bottom = card_box(entry.prompt.family)
            planted_HWC[top:bottom, left:right] = 128
        gap = np.full((planted_HWC.shape[0], 6, 3), 255, np.uint8)
        strips.append(np.concatenate([planted_HWC, gap, *pictures[entry.prompt.caption], gap, gap], axis=1))
    while len(strips) % columns:
        strips.append(np.full_like(strips[0], 255))
    lines = [np.concatenate(strips[i : i + columns], axis=1) for i in range(0, len(strips), columns)]
    spaced = [np.pad(line, ((0, 3), (0, 0), (0, 0)), constant_values=255) for line in lines]
    return Image.fromarray(np.concatenate(spaced))


def views_per_copy(drawn: Plan, training: Training) -> float:
    """How often both phases of the training showed each copy of a plant."""
    second = training.second_steps * training.batch - drawn.recipe.fresh
    return training.steps * training.batch / len(drawn.views) + max(0, second) / len(drawn.plant_views)


def dose_response(judged: Sequence[Judged], views_per_copy: float) -> list[dict[str, Any]]:
    """Per kind and planted count: prompts, views, mean share of generations that copy, its interval, labels."""
    groups: dict[tuple[str, int], list[Judged]] = defaultdict(list)
    for entry in judged:
        if entry.prompt.planted:
            groups[entry.prompt.kind, entry.prompt.copies].append(entry)
    lines = []
    for (kind, copies), entries in sorted(groups.items()):
        shares = [entry.own / entry.n_generations for entry in entries]
        low, high = bootstrap_share(shares)
        line: dict[str, Any] = {"kind": kind, "copies": copies, "views": round(copies * views_per_copy)}
        line |= {"prompts": len(entries), "copied_share": float(np.mean(shares)), "low": low, "high": high}
        line |= {name: sum(entry.label == name for entry in entries) for name in ("memorised", "partly")}
        lines.append(line)
    return lines


def _write(path: Path, columns: list[str], rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
