"""What suppresses the copies of a lab's memorised prompts, at what strength, and what that costs a picture in meaning.

Every method is drawn at its strengths (settings.py), from the same noise as pictures without it, so that all compare
prompt by prompt (the paper's Figure 6 has such curves). A copy is a picture above the line that harmless prompts have
taught with PICTURES of each, whose nearest picture of the index is a planted one; MANY are held against the same line,
which leans against "suppressed". Alignment is the cosine of a picture and its caption, by an open_clip model; beside it
stands the cosine to a caption drawn among harmless ones, since what two captions have in common is no meaning of
either: their difference is what a method can lose. Strengths and the best methods are chosen on the development split;
the test split reports. Each setting is kept as it comes: a bench that was stopped goes on.

Shapes: N prompts, K pictures of each.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.bench.mitigation.settings import CONTROL, Pictures, Rung, Setting, Values
from pipelines.stages.search import Neighbour, SampleSearch
from sharpaudit.config import ModelConfig, SamplesConfig
from sharpaudit.denoisers.base import Conditioning
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.embedders.base import Embedder, open_embedder
from sharpaudit.errors import Status, UserError
from sharpaudit.images import Pixels, decode
from sharpaudit.lab.comparison import is_planted
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.matches.decide import COPY, Bands, Pair, band_of, learn_bands
from sharpaudit.matches.index import open_index
from sharpaudit.mitigation.attack import Attack
from sharpaudit.mitigation.base import NONE, Aimed, Case, Method, Mitigated, mitigate
from sharpaudit.mitigation.targets import middle, values_of
from sharpaudit.plugs import MITIGATIONS, SOLVERS
from sharpaudit.seeds import generator, rank_hash, sample_latents
from sharpaudit.tables.records import digest_of, export_file

BATCH, BAND, ATTACK = 32, SamplesConfig().band_prompts, Attack()
PICTURES, MANY = 5, 16
"""Of each prompt at each strength; and at the strengths that are chosen."""
SIZES = {
    "development": {"exact": 20, "template": 0, "harmless": 0},
    "test": {"exact": 40, "template": 8, "harmless": 8},
}
"""Prompts of each split, drawn among those that there are."""
VERSION = 2
"""Of what is kept: another one where a change of this module or of a method makes other pictures or judges them so."""
CONTROLS = 10
"""Pictures that were shown once, attacked with the same budget."""
KINDS: Mapping[str, Callable[[Truth], bool]] = {
    "exact": lambda row: (row.kind, row.label) == ("exact", "memorised"),
    "template": lambda row: (row.kind, row.label) == ("template", "memorised"),
    "harmless": lambda row: row.label == "harmless" and row.never_planted,
}
Shown = Sequence[Pixels | None]


class Bench:
    """A lab's folder with its model, its index, its line of a copy, and the model that tells alignment."""

    def __init__(self, folder: Path, out: Path, aligning: Embedder) -> None:
        self._folder, self._out, self._aligning = folder, out, aligning
        self._truth = read_truth(folder)
        self._denoiser = load_denoiser(ModelConfig(path=str(folder / "model")))
        self._search = SampleSearch(open_index(folder / "references", "pixels-16"), BATCH)
        self._describer = open_embedder(aligning, BATCH)
        self._line, self._target, self._control = cache(self._learned), cache(self._middle), cache(self._drawn_plain)
        self._attacks: dict[tuple[str, int], Conditioning] = {}
        out.mkdir(parents=True, exist_ok=True)

    def prompts(self, split: str, sizes: Mapping[str, int]) -> dict[str, str]:
        """The kind of each prompt. Raises UserError for a split without exactly memorised ones."""
        rows = sorted(self._truth, key=lambda row: rank_hash(0, "mitigation", row.prompt))
        found: dict[str, str] = {}
        for kind, fits in KINDS.items():
            own = [row.prompt for row in rows if row.split == split and fits(row)][: sizes[kind]]
            found |= dict.fromkeys(own, kind)
        if "exact" not in found.values():
            raise UserError(f"{self._folder}: no prompt of the {split} split is memorised exactly: nothing to suppress")
        return found

    def refused(self, name: str) -> str | None:
        """Why the lab's model cannot be steered by a method; None where it can."""
        return MITIGATIONS[name].method.refusal(self._denoiser)

    @property
    def unattackable(self) -> str | None:
        """Why the lab's model cannot be attacked; None where it can."""
        return ATTACK.refusal(self._denoiser)

    def setting(self, rung: Rung, prompts: Mapping[str, str], pictures: int) -> Setting:
        """What a method at a strength makes of these prompts, from disk where it is there."""
        name = digest_of([*self._held, self._aligning.digest, list(prompts.items()), self._named(rung), pictures])[:12]
        kept = self._out / f"{rung.name}-{rung.strength}-{name}.json"
        if not kept.exists():
            export_file(kept, json.dumps(asdict(self._made(rung, prompts, pictures))).encode())
        return Setting.read(kept)

    def attacked(self, rung: Rung, targets: Mapping[str, int]) -> dict[str, list[bool]]:
        """Of MANY pictures of each prompt behind an attack (attack.py), with a method: which copy the target.

        targets: of each prompt the row in the index of the training picture that is attacked towards. Of a prompt with
        a picture that could not be looked at there is nothing. From disk where it is there.
        """
        if not targets:
            return {}
        name = digest_of([*self._held, list(targets.items()), str(ATTACK), self._named(rung), MANY])[:12]
        kept = self._out / f"attack-{rung.name}-{rung.strength}-{name}.json"
        if not kept.exists():
            export_file(kept, json.dumps(self._behind_an_attack(rung, targets)).encode())
        found: dict[str, list[bool]] = json.loads(kept.read_bytes())
        return found

    def controls(self, split: str, n: int) -> dict[str, int]:
        """Harmless prompts of a split, each with a training picture of its own caption, shown once: its row."""
        rows = sorted(self._truth, key=lambda row: rank_hash(0, "mitigation", row.prompt))
        own = {
            f"seen-{row.family.replace('/', '-')}": row.prompt
            for row in rows
            if (row.split, row.label, row.kind) == (split, "harmless", "seen")
        }
        index, first = self._search.index, dict[str, int]()
        for number in range(len(index.vectors)):
            first.setdefault(index.reference_id(number).rpartition("-")[0], number)
        there = [(prompt, first[name]) for name, prompt in own.items() if name in first]
        return dict(there[:n])

    def _behind_an_attack(self, rung: Rung, targets: Mapping[str, int]) -> dict[str, list[bool]]:
        case, pictures = self._case(list(targets), MANY), [self._shown(row) for row in targets.values()]
        rows = [i for i in range(len(targets)) for _ in range(MANY)]
        case = replace(case, embedded=self._embedded(targets).select(rows))
        made = _pictures(mitigate(self._towards_its_target(rung), case, BATCH))
        made_KD = _rows(made, self._search.described([one for one in made if one is not None]))
        wanted_ND = _rows(pictures, self._search.described(pictures))
        likeness_K = (made_KD * wanted_ND[rows]).sum(axis=1)
        each_NK = likeness_K.reshape(len(targets), MANY)
        copied_NK = each_NK > self._line().copy_above
        whole_N = np.isfinite(each_NK).all(axis=1)
        return {prompt: copied_NK[i].tolist() for i, prompt in enumerate(targets) if whole_N[i]}

    def _shown(self, row: int) -> Pixels:
        """A training picture, as the index has it."""
        held = self._search.index.thumbnail(row)
        if held is None:
            raise UserError(f"{self._folder}: an index without pictures has none to attack towards")
        return decode(held)

    def _embedded(self, targets: Mapping[str, int]) -> Conditioning:
        """What an attack puts in place of each prompt; made once for all methods."""
        missing = [one for one in targets.items() if one not in self._attacks]
        for first in range(0, len(missing), BATCH):
            some = missing[first : first + BATCH]
            shown = torch.stack([torch.from_numpy(self._shown(row)) for _, row in some]).permute(0, 3, 1, 2) / 255
            found = ATTACK.embeddings(self._case([prompt for prompt, _ in some], 1), shown)
            self._attacks |= {one: found.select([i]) for i, one in enumerate(some)}
        return Conditioning.stack([self._attacks[one] for one in targets.items()])

    def _towards_its_target(self, rung: Rung) -> Method:
        method = rung.method
        return replace(method, target=self._target(rung.name)) if isinstance(method, Aimed) else method

    @staticmethod
    def _named(rung: Rung) -> list[str]:
        """A method with all of its settings, and of a foreign one what it says of itself."""
        set_to = str(sorted(vars(rung.method).items()))
        return [rung.name, rung.setting, set_to, MITIGATIONS[rung.name].digest]

    @property
    def _held(self) -> list[object]:
        """What every measurement depends on."""
        asked = SamplesConfig()
        drawing = [VERSION, asked.guidance, asked.steps, asked.solver, PICTURES]
        return [self._denoiser.digest, self._search.index.digest, self._harmless, drawing]

    @property
    def _harmless(self) -> list[str]:
        """Those that teach the line and the targets."""
        return [row.prompt for row in self._truth if row.split == "fit"][:BAND]

    def _case(self, prompts: Sequence[str], pictures: int) -> Case:
        asked = SamplesConfig()
        keys = [(prompt, i) for prompt in prompts for i in range(pictures)]
        x_T = sample_latents(0, keys, self._denoiser.latent_shape)
        texts, names = [prompt for prompt, _ in keys], [i for _, i in keys]
        return Case(self._denoiser, texts, x_T, names, asked.guidance, asked.steps, SOLVERS[asked.solver])

    def _learned(self) -> Bands:
        case = self._case(self._harmless, PICTURES)
        near = self._search.nearest(_pictures(mitigate(NONE.method, case, BATCH)), 1)
        pairs = [
            Pair(prompt, f"{prompt} {i}", found[0].similarity)
            for prompt, i, found in zip(case.prompts, case.names, near, strict=True)
            if not isinstance(found, Status)
        ]
        return learn_bands(pairs, 0.95, 1)

    def _middle(self, name: str) -> float | None:
        """The target of a method that has one: what harmless prompts have in the median."""
        method = MITIGATIONS[name].method
        if not isinstance(method, Aimed):
            return None
        found = middle(values_of(method, self._case(["none"], 1), self._harmless, BATCH))
        if found is None:
            raise UserError(f"{self._folder}: no harmless fit prompt has a value that {name} could aim at")
        return found

    def _timed(self, method: Method, case: Case) -> tuple[list[Mitigated | Status], float]:
        begun = time.monotonic()
        made = mitigate(method, case, BATCH)
        return made, (time.monotonic() - begun) / len(made)

    def _drawn_plain(self, prompts: tuple[str, ...], pictures: int) -> tuple[list[Mitigated | Status], float]:
        return self._timed(NONE.method, self._case(prompts, pictures))

    def _made(self, rung: Rung, prompts: Mapping[str, str], pictures: int) -> Setting:
        case, method = self._case(list(prompts), pictures), self._towards_its_target(rung)
        before, took = self._control(tuple(prompts), pictures)
        made, seconds = (before, took) if rung == CONTROL else self._timed(method, case)
        looked_at = self._looked_at(case, _pictures(made), _pictures(before), self._line())
        by_prompt = {
            prompt: Pictures(kind, **{of: row[i * pictures : (i + 1) * pictures] for of, row in looked_at.items()})
            for i, (prompt, kind) in enumerate(prompts.items())
        }
        exact = [kind == "exact" for kind in prompts.values() for _ in range(pictures)]
        evaluated = zip(made, exact, strict=True)
        spent = float(np.mean([one.evaluations for one, own in evaluated if own and isinstance(one, Mitigated)]))
        return Setting(rung.name, rung.strength, rung.setting, spent, seconds, by_prompt)

    def _looked_at(self, case: Case, made: Shown, before: Shown, bands: Bands) -> dict[str, list[Any]]:
        """Fields of Pictures, of all pictures in a row."""
        best = [None if isinstance(near, Status) else near[0] for near in self._search.nearest(made, 1)]
        found: dict[str, list[Any]] = {
            "copies": [one is not None and _is_copy(one, bands) for one in best],
            "similarity": [math.nan if one is None else one.similarity for one in best],
            "nearest": [-1 if one is None else one.row for one in best],
        }
        seen_KD = _rows(made, self._describer.describe([picture for picture in made if picture is not None]))
        for of, texts in (("aligned", case.prompts), ("unaligned", [self._other(prompt) for prompt in case.prompts])):
            found[of] = (seen_KD * self._describer.describe_texts(texts)).sum(axis=1).tolist()
        both = [self._search.described([one for one in shown if one is not None]) for shown in (made, before)]
        now_KD, then_KD = (_rows(shown, rows) for shown, rows in zip((made, before), both, strict=True))
        return found | {"like_before": (now_KD * then_KD).sum(axis=1).tolist()}

    def _other(self, prompt: str) -> str:
        """A harmless caption, drawn for this prompt."""
        draw = generator(0, "another caption", prompt)
        return self._harmless[int(draw.integers(len(self._harmless)))]


def _is_copy(near: Neighbour, bands: Bands) -> bool:
    """Of a planted picture."""
    return band_of(near.similarity, bands) == COPY and is_planted(near.reference_id)


def _pictures(made: Sequence[Mitigated | Status]) -> Shown:
    return [one.picture if isinstance(one, Mitigated) else None for one in made]


def _rows(shown: Shown, rows_ND: Sequence[npt.NDArray[np.float32] | None] | npt.NDArray[np.float32]) -> Values:
    """A row of each picture, (K, D); NaN where there is no picture, or no row of it."""
    there = [i for i, picture in enumerate(shown) if picture is not None]
    held = {i: row for i, row in zip(there, rows_ND, strict=True) if row is not None}
    if not held:
        return np.full((len(shown), 1), np.nan)
    dimension = len(next(iter(held.values())))
    return np.array([held.get(i, np.full(dimension, np.nan)) for i in range(len(shown))], dtype=np.float64)
