"""card.md of a lab folder, written from the files beside it: settings, truth, dose response, tables of detectors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines.research.lab.agreement import Counted, agreement, never_generated_copy, read_generations
from pipelines.research.lab.build import read_recipe
from pipelines.research.lab.labels import GUIDANCE, MAX_RATIO, N_OTHERS, STEPS
from pipelines.research.lab.regions import LIKE, SIZE
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
  weights with cross-attention at 8 x 8 and 4 x 4, {prediction} prediction, Stable Diffusion's noise levels.
- Trained on a CPU with `sharpaudit lab train`: {steps:,} steps of {batch} pictures after {vae_steps:,} steps of the
  autoencoder, seed {seed}, {minutes:.0f} minutes in all; the log is training.jsonl, settings and digests of the weights
  are in settings.json. The same command gives the same weights on the same machine and versions; another processor
  rounds differently, and small differences grow.
- Versions: {versions}.

## Training pictures

{unique:,} pictures of one object each ({objects} objects of the Noto emoji artwork, Apache 2.0) at a drawn place,
size and angle on a shaded ground, {exact:,} pictures planted exactly, and {templates} templates of {template_copies}
copies each that differ in one region. Captions of planted and other pictures come from one grammar; half of them name
the colour of the ground, which otherwise may be any. Nothing was done against memorisation, nor for tidy findings: a
caption near that of a plant may show the plant. `sharpaudit lab pictures DIR` draws the whole set again. In references/
are the planted pictures, 8 copies of each template and 600 others.

## Truth

What was planted proves nothing, so labels come from generations (DDIM, {ddim} steps, guidance {guidance:g}). Pictures
are compared by normalised pixels (every channel without its mean, the whole scaled to length 1). A generation is a copy
if, of all training pictures, the planted one is the nearest, and nearer than {ratio:g} of the mean distance to the 50
nearest pictures that are no plant; templates are compared outside the varied region. Of 8 generations a *memorised*
prompt copies its plant in at least 4, a *partly* memorised one in 1 to 3. A *neighbour* was never planted,
or its own plant was not copied, and copies another plant: a finding in an audit, in a table of detectors neither
positive nor negative. Planted prompts, the top 5% of the others by any first-step metric and {drawn} more got
generations; the rest are *harmless* by that rule alone (decided_by = screen in truth.csv). Never-planted prompts are
dealt out to the splits whatever their labels, so that development and test hold neighbours as often as they occur; in
fit and calibration harmless ones take their places. No prompt of calibration or test was ever in a fit or development
split, of this model or of an earlier one, whose prompts fitted.txt lists.

"""
INSTRUMENTS_HEAD = """### Two instruments, two guidances

Labels are those of normalised pixels at guidance {guidance:g}. Beside stands what a second instrument says, which no
audit uses: the mean correlation of windows of {size} pixels in which the plant has texture, {like:g} and above being a
copy; and what both say without guidance, of the planted prompts and of those that copied anything.

"""

TOUCHES_HEAD = """## Looks at the test split

Every choice of a metric, a gate or a threshold was made on the development split. How pictures are
drawn was chosen by the pictures alone: captions should fix as little of them as captions of photographs do. How the
model is trained was chosen on the development split.

"""
LIMITS = """## Limits

- One seed, one training: another training memorises other prompts of the same list.
- Emoji on shaded grounds are simple pictures. Rates here say how metrics compare, not how they do on photographs.
- Objects are small and grounds are of one colour: a caption that names none fixes little of its picture, so the metrics
  of the literature work on it about as well as they do on Stable Diffusion. On captions that name a colour they do not.
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
        prediction=training.prediction.removesuffix("_prediction"),
        seed=training.seed,
        minutes=settings["minutes"],
        versions=", ".join(f"{name} {number}" for name, number in settings["versions"].items()),
        unique=recipe.unique,
        objects=settings["objects"],
        exact=sum(many for _, many in recipe.exact),
        templates=recipe.templates,
        template_copies=recipe.template_copies,
        ratio=MAX_RATIO,
        ddim=STEPS,
        guidance=GUIDANCE,
        drawn=N_OTHERS,
    )
    text += _splits(read_truth(folder)) + _dose(json.loads((folder / DOSE).read_text(encoding="utf-8")))
    text += _instruments(read_generations(folder))
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


def _instruments(rows: Sequence[Counted]) -> str:
    lines = [
        [
            f"{found.guidance:g}",
            found.prompts,
            _share(found.same_labels, found.prompts),
            found.generations,
            _share(found.same, found.generations),
        ]
        for found in agreement(rows)
    ]
    head = ["guidance", "prompts", "of one label by both", "generations", "told alike by both"]
    text = INSTRUMENTS_HEAD.format(guidance=GUIDANCE, size=SIZE, like=LIKE) + _markdown(head, lines)
    disputed = [row for row in rows if row.guidance == GUIDANCE and row.disputed_label]
    if disputed:
        text += "Prompts that they label differently, with the generations that copy their own and another plant:\n\n"
        told = [[row.prompt, row.kind, *_by(row, "pixels"), *_by(row, "regions")] for row in disputed]
        text += _markdown(["prompt", "kind", "by pixels", "own / other", "by regions", "own / other"], told)
    copied, drawn, bound = never_generated_copy(rows)
    return text + (
        f"Of {drawn} prompts drawn from those that no metric ranks high, {copied} copy a plant. So at most {bound:.1%} "
        f"of the others that were never generated do (95% confidence), in {rows[0].generations} generations.\n\n"
    )


def _share(n: int, of: int) -> str:
    return f"{n:,} ({n / of:.1%})" if of else "none"


def _by(row: Counted, instrument: str) -> tuple[str, str]:
    own, other = getattr(row, f"{instrument}_own"), getattr(row, f"{instrument}_other")
    return row.label(instrument), f"{own} / {other}"


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
