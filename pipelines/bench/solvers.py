"""At what solver and how few steps do the copies of a lab stay?

Pictures of the memorised prompts of a split, and of harmless fit prompts, which set the line of a copy for each
setting anew, as an audit does. All settings begin with the same noise, so that they are compared prompt by prompt:
*lost* are prompts of which the reference (DDIM, 25 steps) has a copy among its pictures and a setting has none,
*gained* the other way round. A copy must be of a planted picture. Each setting is kept as it comes, and a bench that
was stopped goes on.

Shapes: N prompts, K pictures of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipelines.bench.lines import Line, table
from pipelines.stages.search import SampleSearch
from sharpaudit.config import ModelConfig, SamplesConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.lab.comparison import is_planted
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.matches.decide import Bands, Pair, band_of, learn_bands
from sharpaudit.matches.index import open_index
from sharpaudit.plugs import SOLVERS
from sharpaudit.samples.generate import Generator
from sharpaudit.statistics.intervals import Interval, clopper_pearson, upper_bound
from sharpaudit.tables.records import digest_of, export_file

REFERENCE = ("ddim", 25)
SETTINGS = (
    REFERENCE,
    ("ddim", 15),
    ("ddim", 10),
    ("dpm-solver++", 25),
    ("dpm-solver++", 15),
    ("dpm-solver++", 12),
    ("dpm-solver++", 10),
    ("dpm-solver++", 8),
    ("dpm-solver++", 6),
)
K, BAND, BATCH = SamplesConfig().per_prompt, SamplesConfig().band_prompts, 64
KINDS = ("exact", "template")
MOST_STEPS = 999


@dataclass(frozen=True)
class Setting:
    """copies: of K pictures of each prompt, by its text. similarity: the highest of each. line: above which a copy
    begins. kinds: exact or template, of each."""

    solver: str
    steps: int
    evaluations: int
    line: float
    copies: dict[str, int]
    similarity: dict[str, float]
    kinds: dict[str, str]

    @property
    def found(self) -> set[str]:
        """Prompts with a copy."""
        return {prompt for prompt, n in self.copies.items() if n}


def settings(asked: Sequence[str]) -> list[tuple[str, int]]:
    """Solvers and steps, written "ddim:15", after the reference; those of the table where none is asked for.

    Raises UserError.
    """
    found = [REFERENCE]
    for text in asked:
        solver, _, steps = text.rpartition(":")
        if not steps.isdecimal() or not 2 <= int(steps) <= MOST_STEPS or not solver:
            raise UserError(f"--at {text}: write a solver and 2 to {MOST_STEPS} steps, such as ddim:15")
        found.append((SOLVERS[solver].name, int(steps)))
    return list(dict.fromkeys(found)) if asked else list(SETTINGS)


def measure(folder: Path, split: str, out: Path, asked: Sequence[tuple[str, int]] = SETTINGS) -> Iterator[Setting]:
    """Every setting that is asked for on a split of a lab's folder, the reference first.

    Raises UserError for a split without memorised prompts.
    """
    truth = read_truth(folder)
    memorised = [row for row in truth if row.split == split and row.label == "memorised" and row.kind in KINDS]
    harmless = [row for row in truth if row.split == "fit"][:BAND]
    if not memorised:
        raise UserError(f"{folder}: no prompt of the {split} split is memorised, so there is no copy to lose")
    out.mkdir(parents=True, exist_ok=True)
    denoiser = load_denoiser(ModelConfig(path=str(folder / "model")))
    index = open_index(folder / "references", "pixels-16")
    search = SampleSearch(index, BATCH)
    prompts = [row.prompt for row in (*memorised, *harmless)]
    # Of another model, index or labels nothing is taken over.
    lab = digest_of([denoiser.digest, index.digest, prompts])[:8]
    for solver, steps in asked:
        kept = out / f"{lab}-{solver}-{steps}.json"
        if not kept.exists():
            generator = Generator(denoiser, 0, steps, SamplesConfig().guidance, BATCH, SOLVERS[solver])
            made = _setting(solver, generator, search, memorised, harmless)
            export_file(kept, json.dumps(asdict(made)).encode())
        yield Setting(**json.loads(kept.read_bytes()))


def _setting(
    solver: str, generator: Generator, search: SampleSearch, memorised: Sequence[Truth], harmless: Sequence[Truth]
) -> Setting:
    band = [
        Pair(row.prompt, f"{row.prompt} {i}", similarity)
        for row, found in zip(harmless, _nearest(generator, search, harmless), strict=True)
        for i, (similarity, _) in enumerate(found)
    ]
    bands = learn_bands(band, 0.95, 1)
    copies, best = dict[str, int](), dict[str, float]()
    for row, found in zip(memorised, _nearest(generator, search, memorised), strict=True):
        copies[row.prompt] = sum(_is_copy(similarity, reference, bands) for similarity, reference in found)
        best[row.prompt] = max((similarity for similarity, _ in found), default=-1.0)
    kinds = {row.prompt: row.kind for row in memorised}
    return Setting(solver, generator.steps, generator.evaluations, bands.copy_above, copies, best, kinds)


def _is_copy(similarity: float, reference: str, bands: Bands) -> bool:
    """Of a planted picture."""
    return band_of(similarity, bands) == "copy" and is_planted(reference)


def _nearest(generator: Generator, search: SampleSearch, rows: Sequence[Truth]) -> list[list[tuple[float, str]]]:
    """Similarity and name of the training picture nearest to each of K pictures of each prompt, where there is one."""
    keys = [(row.prompt, i) for row in rows for i in range(K)]
    made = generator.pictures([prompt for prompt, _ in keys], keys)
    near = search.nearest([None if isinstance(picture, Status) else picture for picture in made], 1)
    told = [None if isinstance(one, Status) else (one[0].similarity, one[0].reference_id) for one in near]
    return [[one for one in told[i * K : (i + 1) * K] if one is not None] for i in range(len(rows))]


def _of_kind(setting: Setting, kind: str | None) -> list[str]:
    return [prompt for prompt, own in setting.kinds.items() if kind in (None, own)]


def _share(setting: Setting, prompts: Sequence[str]) -> tuple[float, Interval]:
    n = len(setting.found & set(prompts))
    return n / len(prompts), clopper_pearson(n, len(prompts))


def bench_lines(found: Sequence[Setting]) -> Iterator[Line]:
    """What each setting finds and loses; the default's loss has a goal: none."""
    default = SamplesConfig()
    for one in found:
        name, prompts = f"solvers.{one.solver}_{one.steps}", _of_kind(one, None)
        value, interval = _share(one, prompts)
        yield Line(f"{name}.found", value, "share", len(prompts), interval.low, interval.high)
        yield Line(f"{name}.evaluations", one.evaluations, "evaluations a picture", len(prompts))
        lost, in_force = len(found[0].found - one.found), (one.solver, one.steps) == (default.solver, default.steps)
        high = upper_bound(lost, len(prompts), 0.975)
        goal = 0.0 if in_force else None
        yield Line(f"{name}.lost", lost / len(prompts), "share", len(prompts), 0.0, high, goal=goal, at_most=True)


def markdown(found: Sequence[Setting]) -> str:
    """The table for people."""
    head = ["solver", "steps", "evaluations a picture", "line of a copy", "exact plants found", "template plants found"]
    head += ["lost", "gained", f"copies of {K} pictures", "similarity lost"]
    reference, rows = found[0], list[list[object]]()
    for one in found:
        shares = []
        for kind in KINDS:
            prompts = _of_kind(one, kind)
            shares.append(f"{len(one.found & set(prompts))} of {len(prompts)}" if prompts else "none there")
        differences = [reference.similarity[prompt] - one.similarity[prompt] for prompt in one.similarity]
        rows.append(
            [
                one.solver,
                one.steps,
                one.evaluations,
                f"{one.line:.3f}",
                *shares,
                len(reference.found - one.found),
                len(one.found - reference.found),
                f"{np.mean(list(one.copies.values())):.2f}",
                f"{np.median(differences):.3f}",
            ]
        )
    n = len(reference.copies)
    bound = upper_bound(0, n, 0.95)
    return table(head, rows) + (
        f"\nLost and gained: of {n} memorised prompts, against {reference.solver} at {reference.steps} steps from the "
        f"same noise. Where none is lost, fewer than {bound:.1%} of such prompts are lost (95% confidence). Similarity "
        "lost: the median over prompts of how much lower the best picture's is.\n"
    )
