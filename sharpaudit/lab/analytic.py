"""The analytic testbed: a Gaussian mixture with planted pictures, audited in seconds.

`write(folder)` makes a whole input from nothing and a seed: model.json, prompts (audit and harmless), truth.csv
and a reference index of the planted pictures among others. What is shipped under `lab:analytic` is what it
writes. Captions of planted and harmless prompts come from one grammar, so that wording gives nothing away.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.sources.base import ReferencePicture
from sharpaudit.seeds import generator, latents

STYLES = ("photo", "oil painting", "pencil drawing", "poster", "watercolour", "woodcut", "collage", "mosaic")
LOOKS = ("old", "small", "broken", "quiet", "bright", "lonely", "crooked", "polished", "striped", "heavy")
THINGS = ("bridge", "lamp", "violin", "teapot", "lighthouse", "bicycle", "clock", "garden", "ladder", "harbour")
PLACES = ("in the rain", "at dawn", "by the sea", "on a hill", "under snow", "in a window", "at the fair", "on a table")


@dataclass(frozen=True)
class Sizes:
    """How many prompts of each kind. strong ones copy nearly always, weak ones sometimes; harmless never."""

    strong: int = 20
    weak: int = 10
    audited_harmless: int = 400
    harmless: int = 798
    other_references: int = 90


def captions(seed: int) -> list[str]:
    """All captions of the grammar in a seeded order."""
    grid = itertools.product(STYLES, LOOKS, THINGS, PLACES)
    every = [f"A {style} of a {look} {thing} {place}" for style, look, thing, place in grid]
    return [every[i] for i in generator(seed, "captions").permutation(len(every))]


def write(folder: Path, sizes: Sizes = Sizes(), seed: int = 0) -> None:
    """Write the testbed into `folder`, which may exist but must not hold an index."""
    every = captions(seed)
    planted = every[: sizes.strong + sizes.weak]
    rest = every[len(planted) :]
    audited = rest[: sizes.audited_harmless]
    harmless = rest[sizes.audited_harmless : sizes.audited_harmless + sizes.harmless]
    shares = [0.97] * sizes.strong + [0.3] * sizes.weak
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    model = {
        "kind": "gaussian",
        "version": 1,
        "seed": seed,
        "latent_shape": [3, 8, 8],
        "planted": [{"prompt": p, "share": s} for p, s in zip(planted, shares, strict=True)],
    }
    (folder / "model.json").write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    kinds = ["strong"] * sizes.strong + ["weak"] * sizes.weak + ["harmless"] * len(audited)
    order = generator(seed, "order").permutation(len(kinds))
    mixed = [([*planted, *audited][i], kinds[i]) for i in order]
    _write_csv(folder / "prompts" / "audit.csv", ["id", "prompt"], [[f"c{i:04d}", p] for i, (p, _) in enumerate(mixed)])
    _write_csv(folder / "prompts" / "harmless.csv", ["prompt"], [[p] for p in harmless])
    _write_csv(folder / "truth.csv", ["prompt", "kind"], [[p, kind] for p, kind in mixed])
    denoiser = GaussianDenoiser.from_file(folder / "model.json")
    build_index(folder / "index", "pixels-16", _references(denoiser, planted, sizes.other_references, seed))


def _references(
    denoiser: GaussianDenoiser, planted: Sequence[str], others: int, seed: int
) -> Iterator[ReferencePicture]:
    """The planted pictures and as many unrelated ones as asked for, as a training set would hold them."""
    planted_BCHW = [denoiser.planted_latent(i) for i in range(len(planted))]
    other_BCHW = latents([(seed, "reference", i) for i in range(others)], denoiser.latent_shape).clamp(-1, 1)
    captions_ = [*planted, *([""] * others)]
    for i, (latent, caption) in enumerate(zip([*planted_BCHW, *other_BCHW], captions_, strict=True)):
        pixels = denoiser.decode(latent[None])[0].permute(1, 2, 0).numpy()
        data = encode_png((pixels * 255).round().astype(np.uint8))
        yield ReferencePicture(reference_id=f"training-{i:05d}", source="analytic", caption=caption, path="", data=data)


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
