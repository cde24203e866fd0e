"""What stands beside the lab's model: truth.csv, generations.csv, prompts/, references/, sheets, the dose response."""

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

from pipelines.research.lab.agreement import Counted, Kept, count, write_generations
from pipelines.research.lab.build import kept_pictures, read_recipe
from pipelines.research.lab.card import DOSE
from pipelines.research.lab.labels import (
    GUIDANCE,
    N_GENERATIONS,
    UNGUIDED,
    Judged,
    Plants,
    bootstrap_share,
    generations,
    judged_all,
    to_generate,
)
from pipelines.research.lab.splits import IN_DEVELOPMENT, SIZES, fitted, split
from pipelines.research.lab.training import Training
from pipelines.research.lab.trainingset import Plan, Prompt, Recipe, TrainingPicture, picture, plan
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.sources.base import ReferencePicture
from sharpaudit.seeds import rank_hash
from sharpaudit.tables.records import export_file

TRUTH = ["prompt", "split", "family", "kind", "planted_copies", "copied_share", "label", "decided_by"]
TEMPLATE_REFERENCES = 8
OTHER_REFERENCES = 600
PROFILE = "pixels-16"
BLANK = (640, 64)


def label_model(folder: Path, work: Path, sheets: Path, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Generate, judge and write everything that stands beside FOLDER/model; returns the dose response.

    work: what is counted is kept there, so that a second call goes on. sheets: gets memorised.jpg, every memorised
    prompt, and disputed.jpg, every prompt that the two instruments label differently.
    """
    recipe, training = read_recipe(folder)
    work.mkdir(parents=True, exist_ok=True)
    drawn = plan(recipe)
    plants = Plants(drawn, kept_pictures(drawn, work))
    denoiser = load_denoiser(ModelConfig(path=str(folder / "model"), dtype="float32", device="cpu"))
    counted = _counted(denoiser, drawn, plants, work, say)
    known = {row.prompt: row for row in counted if row.guidance == GUIDANCE}
    decided = [_judged(prompt, known[prompt.caption]) for prompt in drawn.prompts if prompt.caption in known]
    judged = judged_all(drawn.prompts, decided)
    write_truth(folder, judged, split(judged, *sizes(recipe), recipe.seed, fitted()), recipe.seed)
    write_generations(folder, counted)
    if not (folder / "references").exists():
        write_references(folder / "references", drawn, plants.training_NHWC)
    shown = {
        "memorised": [entry.prompt for entry in decided if entry.label == "memorised"],
        "disputed": [entry.prompt for entry in decided if known[entry.prompt.caption].disputed_label],
    }
    sheets.mkdir(parents=True, exist_ok=True)
    for name, prompts in shown.items():
        sheet, made = io.BytesIO(), [part for _, part in generations(denoiser, prompts, recipe.seed, GUIDANCE)]
        pictures_NGHWC = np.concatenate(made) if made else np.empty((0, N_GENERATIONS, *BLANK, 3), np.uint8)
        contact_sheet(plants, prompts, pictures_NGHWC).save(sheet, format="JPEG", quality=85)
        export_file(sheets / f"{name}.jpg", sheet.getvalue())
    lines = dose_response(judged, views_per_copy(drawn, training))
    export_file(folder / DOSE, f"{json.dumps(lines, indent=1)}\n".encode())
    return lines


def _counted(
    denoiser: Denoiser, drawn: Plan, plants: Plants, work: Path, say: Callable[[str], object]
) -> list[Counted]:
    """What both instruments count: of every prompt that is chosen, then without guidance of those that may copy."""
    # Under the model's digest: generations of another training are no evidence about this one.
    chosen = _chosen(denoiser, drawn, work / f"chosen-{denoiser.digest[:16]}.json")
    kept = Kept(work / f"counted-{denoiser.digest[:16]}.csv")

    def go_on(prompts: Sequence[Prompt], guidance: float) -> None:
        there = {row.prompt for row in kept.rows if row.guidance == guidance}
        missing = [prompt for prompt in prompts if prompt.caption not in there]
        done = len(prompts) - len(missing)
        for some, pictures_NGHWC in generations(denoiser, missing, drawn.recipe.seed, guidance):
            kept.add(count(plants, some, chosen, guidance, pictures_NGHWC))
            done += len(some)
            say(f"{done:,} of {len(prompts):,} prompts generated {N_GENERATIONS} times at guidance {guidance:g}")

    order = {"planted": 0, "drawn": 1, "ranked": 2}
    prompts = [prompt for prompt in drawn.prompts if prompt.caption in chosen]
    go_on(sorted(prompts, key=lambda prompt: order[chosen[prompt.caption]]), GUIDANCE)
    copying = {row.prompt for row in kept.rows if row.pixels_own or row.pixels_other}
    go_on([prompt for prompt in prompts if prompt.planted or prompt.caption in copying], UNGUIDED)
    return sorted(kept.rows, key=lambda row: (-row.guidance, list(chosen).index(row.prompt)))


def _chosen(denoiser: Denoiser, drawn: Plan, path: Path) -> dict[str, str]:
    """Why captions are generated, from the file if it is there."""
    if not path.exists():
        export_file(path, json.dumps(to_generate(denoiser, drawn.prompts, drawn.recipe.seed)).encode())
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return known


def _judged(prompt: Prompt, row: Counted) -> Judged:
    return Judged(prompt, row.generations, row.pixels_own, row.pixels_other)


def sizes(recipe: Recipe) -> tuple[dict[str, int], dict[str, int]]:
    """Harmless prompts of each split, and memorised ones of development by kind; of a smaller recipe in proportion."""
    share = min(1.0, recipe.harmless / Recipe().harmless)
    harmless, memorised = ({name: int(n * share) for name, n in part.items()} for part in (SIZES, IN_DEVELOPMENT))
    return harmless, memorised


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
    for name in SIZES:
        _write(folder / "prompts" / f"{name}.csv", ["prompt", "family"], [r for r in rows if r["split"] == name])


def write_references(folder: Path, drawn: Plan, pictures_NHWC: npt.NDArray[np.uint8]) -> None:
    """An index small enough to ship: every planted picture, 8 copies of each template and 600 other pictures."""

    def few(row: TrainingPicture) -> bool:
        if row.kind == "template":
            return int(row.picture_id[-3:]) < TEMPLATE_REFERENCES
        return row.kind == "exact"

    others = [row for row in drawn.rows if row.kind in ("seen", "other")]
    others.sort(key=lambda row: rank_hash(drawn.recipe.seed, "reference", row.picture_id))
    chosen = {row.picture_id for row in [*filter(few, drawn.rows), *others[:OTHER_REFERENCES]]}
    build_index(
        folder, PROFILE, references(drawn, pictures_NHWC, chosen), training_size=len(drawn.rows), dtype="float16"
    )


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
    plants: Plants, prompts: Sequence[Prompt], pictures_NGHWC: npt.NDArray[np.uint8], columns: int = 2
) -> Image.Image:
    """Of every prompt its planted picture, or the nearest where none was planted, then its generations.

    A template's varied region is grey. A blank sheet where there is no prompt.
    """
    if not prompts:
        return Image.new("RGB", BLANK, "white")
    strips = []
    of_caption = {prompt.caption: p for p, prompt in enumerate(plants.prompts)}
    for prompt, made_GHWC in zip(prompts, pictures_NGHWC, strict=True):
        nearest = int(plants.distances(made_GHWC).min(axis=0).argmin())
        shown = of_caption.get(prompt.caption, nearest)
        planted_HWC = plants.pictures_PHWC[shown].copy()
        planted_HWC[~plants.masks[shown]] = 128
        gap = np.full((planted_HWC.shape[0], 6, 3), 255, np.uint8)
        strips.append(np.concatenate([planted_HWC, gap, *made_GHWC, gap, gap], axis=1))
    while len(strips) % columns:
        strips.append(np.full_like(strips[0], 255))
    lines = [np.concatenate(strips[i : i + columns], axis=1) for i in range(0, len(strips), columns)]
    spaced = [np.pad(line, ((0, 3), (0, 0), (0, 0)), constant_values=255) for line in lines]
    return Image.fromarray(np.concatenate(spaced))


def views_per_copy(drawn: Plan, training: Training) -> float:
    """How often the training showed each copy of a plant."""
    return training.steps * training.batch / len(drawn.views)


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
