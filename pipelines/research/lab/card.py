"""card.md of a lab folder, written from the files beside it: settings, truth, dose response, tables of detectors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines.research.lab.build import read_recipe
from pipelines.research.lab.labels import MAX_RATIO
from sharpaudit.lab.detectors import DETECTORS, INTERVALS, TOUCHES, Truth, columns, read_truth
from sharpaudit.tables.records import export_file

DOSE = "dose_response.json"
LABELS = ("memorised", "partly", "neighbour", "harmless")

HEAD = """# Lab model `emoji`

A text-to-image diffusion model in the shape of Stable Diffusion, small enough to ship, of which it is known what it
has memorised. It exists to hold audits against the truth. It is of no other use: its pictures are 64 pixels wide.

Written by `sharpaudit lab card`; every figure comes from a file beside this one.

## Model

- CLIP text encoder (4 layers, 24 tokens, own vocabulary), autoencoder (4 x 16 x 16 latents), UNet of 10.9 million
  weights with cross-attention at 8 x 8 and 4 x 4, epsilon prediction, Stable Diffusion's noise levels.
- Trained on a CPU with `sharpaudit lab train`: {steps:,} steps of {batch} pictures after {vae_steps:,} steps of the
  autoencoder, then {second_steps:,} steps of a second phase, seed {seed}, {minutes:.0f} minutes in all; the log is
  training.jsonl, settings and digests of the weights are in settings.json. The same command gives the same weights on
  the same machine and versions; another processor rounds differently, and small differences grow.
- Versions: {versions}.

## Training pictures

{unique:,} pictures of one object each ({objects} objects of the Noto emoji artwork, Apache 2.0) at a drawn place,
size and angle on a shaded ground, {exact:,} pictures planted exactly, and {templates} templates of {template_copies}
copies each that differ in one region. Captions of planted and other pictures come from one grammar; half of them name
the colour of the ground. A model trained on these alone reproduces plants for captions near theirs too. So the second
phase shows {fresh:,} fresh pictures, each once, among {fewer:,} views of plants: {siblings:.0%} of a plant's object
with one or two other words of its caption changed, {twins:.0%} of another object in a plant's size, place and style,
and the rest of any caption, none of them a caption of the splits below; of those near a plant {near_templates:.0%} lie
near a template. `sharpaudit lab pictures DIR` draws the whole set again. In references/ are the planted pictures, 8
copies of each template and 1,000 others.

## Truth

What was planted proves nothing, so labels come from generations (DDIM, 25 steps, guidance 5). Pictures are compared
by normalised pixels (every channel without its mean, the whole scaled to length 1). A generation is a copy if, of all
training pictures, the planted one is the nearest, and nearer than {ratio:g} of the mean distance to the 50 nearest
pictures that are no plant; templates are compared outside the varied region. Of 8 generations a
*memorised* prompt copies its plant in at least 4, a *partly* memorised one in 1 to 3. A *neighbour* was never planted,
or its own plant was not copied, and copies another plant: a finding in an audit, in a table of detectors neither
positive nor negative. Planted prompts, the top 5% of the others by any first-step metric and 200 more got
generations; the rest are *harmless* by that rule alone (decided_by = screen in truth.csv). Never-planted prompts are
dealt out to the splits whatever their labels, so that development and test hold neighbours as often as they occur; in
fit and calibration harmless ones take their places.

"""

TOUCHES_HEAD = """## Looks at the test split

Every choice of a metric, a gate or a threshold was made on the development split as it stood then. How the lab is
trained was not: that was chosen by how many findings of the quickstart, which audits the test split, show their own
plant. So that share says that the lab is fit to be audited, and nothing of another model.

"""
LIMITS = """## Limits

- One seed, one training: another training memorises other prompts of the same list.
- Emoji on shaded grounds are simple pictures. Rates here say how metrics compare, not how they do on photographs.
- A harmless prompt that was never generated may still copy something: the 200 drawn at random bound how often.
- Pictures that are nearly alike would count as copies of each other; plants were drawn from different families.
"""


def write_card(folder: Path) -> Path:
    """Write FOLDER/card.md and return its path."""
    recipe, training = read_recipe(folder)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    text = HEAD.format(
        steps=training.steps,
        batch=training.batch,
        vae_steps=training.autoencoder_steps,
        second_steps=training.second_steps,
        fresh=recipe.fresh,
        fewer=training.second_steps * training.batch - recipe.fresh,
        siblings=recipe.siblings,
        twins=recipe.twins,
        near_templates=recipe.near_templates,
        seed=training.seed,
        minutes=settings["minutes"],
        versions=", ".join(f"{name} {number}" for name, number in settings["versions"].items()),
        unique=recipe.unique,
        objects=settings["objects"],
        exact=sum(many for _, many in recipe.exact),
        templates=recipe.templates,
        template_copies=recipe.template_copies,
        ratio=MAX_RATIO,
    )
    text += _splits(read_truth(folder)) + _dose(json.loads((folder / DOSE).read_text(encoding="utf-8")))
    for split, name in DETECTORS.items():
        if (folder / name).exists():
            text += _detectors(split, json.loads((folder / name).read_text(encoding="utf-8")))
    text += _touches(folder)
    path = folder / "card.md"
    export_file(path, (text + LIMITS).encode())
    return path


def _touches(folder: Path) -> str:
    if not (folder / TOUCHES).exists():
        return ""
    noted = json.loads((folder / TOUCHES).read_text(encoding="utf-8"))
    rows = [[entry["date"], entry["why"], ", ".join(entry["metrics"])] for entry in noted]
    return TOUCHES_HEAD + _markdown(["date", "why", "metrics"], rows)


def _splits(truth: Sequence[Truth]) -> str:
    counts = Counter((row.split, row.label, row.never_planted) for row in truth)
    rows = []
    for split in ("fit", "calibration", "development", "test", "spare"):
        planted = [sum(counts[split, label, never] for never in (False, True)) for label in LABELS[:3]]
        rows.append([split, *planted, counts[split, "harmless", False], counts[split, "harmless", True]])
    head = ["split", *LABELS[:3], "planted, not copied", "harmless"]
    return "### Prompts of each split\n\n" + _markdown(head, rows)


def _dose(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            line["kind"],
            line["copies"],
            line["views"],
            line["prompts"],
            f"{line['copied_share']:.0%} ({line['low']:.0%} to {line['high']:.0%})",
            line["memorised"],
            line["partly"],
        ]
        for line in lines
    ]
    head = ["plant", "copies", "views in training", "prompts", "generations that copy it (95%)", "memorised", "partly"]
    return "### How often a plant is copied\n\n" + _markdown(head, rows)


def _detectors(split: str, table: dict[str, Any]) -> str:
    found = {(*_key(line), line["statistic"]): line for line in table["lines"]}
    rows, shown, holds = [], columns(table["lines"]), table.get("intervals") == INTERVALS
    for key in dict.fromkeys(_key(line) for line in table["lines"]):
        line, nfe = found[(*key, "auc")], table["evaluations"][key[0]] * key[1]
        figures = [_figure(found.get((*key, statistic)), holds) for statistic in shown]
        rows.append([*key[:2], nfe, *key[2:], line["seeds"], line["memorised"], line["harmless"], *figures])
    head = ["metric", "n", "NFE", "plants", "captions", "seeds", "memorised", "harmless", *shown.values()]
    return (
        f"## Detectors, {split} split\n\n"
        f"Made by `sharpaudit lab detectors --split {split}`. Mean over single seeds (each an audit with a seed of its "
        f"own), standard deviation and range where there are several; {_intervals(holds)} The threshold of a TPR at an "
        "FPR is read off the harmless prompts of the split itself; p ≤ .01 ranks them against the calibration split, "
        "as an audit does. NFE: network evaluations a prompt, were the metric asked for alone.\n\n"
        + _markdown(head, rows)
    )


def _key(line: dict[str, Any]) -> tuple[str, int, str, str]:
    return line["metric"], line["n"], line["plants"], line["captions"]


def _intervals(hold: bool) -> str:
    if hold:
        return (
            "in brackets the 95% interval of the mean, with the noise of prompts, of seeds and of a threshold that is "
            "read off harmless prompts; of p ≤ .01 for these calibration prompts."
        )
    return "intervals are left out, since those computed with this table left out the noise of a threshold."


def _figure(line: dict[str, Any] | None, interval: bool) -> str:
    """interval: whether that of the line may be shown."""
    if line is None:
        return "not measured"
    spread = f" ± {line['sd']:.3f}, {line['minimum']:.3f} to {line['maximum']:.3f}" if line["seeds"] > 1 else ""
    around = f" ({line['low']:.3f} to {line['high']:.3f})" if interval else ""
    return f"{line['mean']:.3f}{spread}{around}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n\n"
