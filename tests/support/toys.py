"""Toy plugs as a stranger's package would declare them: of each kind the smallest that does something of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from pipelines.stages.base import Stage, Work, Worker
from sharpaudit.config import AuditConfig, ModelConfig, Section
from sharpaudit.corpus.formats.base import Format
from sharpaudit.corpus.opened import open_text
from sharpaudit.corpus.rows import PromptRow, Source, make_row
from sharpaudit.denoisers.base import SCREEN_STEPS, Denoiser, Tokenizer
from sharpaudit.denoisers.families.base import Family
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser, GaussianSpec, GaussianTokenizer
from sharpaudit.denoisers.sampling import Guided, Solver, Steps
from sharpaudit.embedders.base import Describer, Embedder
from sharpaudit.errors import Status
from sharpaudit.images import Pixels, decode
from sharpaudit.mitigation.base import Case, Method, Mitigation, Steered, plain
from sharpaudit.report.reading import one
from sharpaudit.report.sections.base import ReportSection
from sharpaudit.scores.base import Evidence, Metric, Place, at
from sharpaudit.scores.noise_gap import noise_gap
from sharpaudit.seeds import screen_latent
from sharpaudit.tables.image_store import read_image
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SAMPLES, define


class MirroredDenoiser(GaussianDenoiser):
    """The analytic model, its pictures turned around. digest: of the file that it was read from."""

    digest = ""

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        return super().decode(latents_BCHW).flip(-1)


class MirroredFamily(Family):
    """{"kind": "mirrored"} and what else a model.json of the analytic model says."""

    name = "mirrored"
    digest = "1"

    def files(self, index: Path) -> list[str]:
        return [index.name]

    def tokenizer(self, index: Path) -> Tokenizer:
        return GaussianTokenizer()

    def placement(self, config: ModelConfig, *, gpus_elsewhere: bool = False) -> tuple[torch.device, torch.dtype]:
        return torch.device("cpu"), torch.float32

    def load(self, index: Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
        denoiser = MirroredDenoiser(GaussianSpec.model_validate(json.loads(index.read_bytes()) | {"kind": "gaussian"}))
        denoiser.digest = self.content(index)
        return denoiser


FAMILY = MirroredFamily()


class MeanColour(Describer):
    def describe(self, images: Sequence[Pixels]) -> np.ndarray:
        return self._rows([image.mean(axis=(0, 1)) for image in images])

    def describe_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._rows([[255.0 * (word in text) for word in ("red", "green", "blue")] for text in texts])

    def _rows(self, colours_N3: Sequence[Sequence[float]]) -> np.ndarray:
        rows_N4 = np.array([[*colour, 64.0] for colour in colours_N3], np.float64).reshape(-1, 4)
        return (rows_N4 / np.linalg.norm(rows_N4, axis=1, keepdims=True)).astype(np.float32)


class MeanColourEmbedder(Embedder):
    """A picture is its mean colour, a text the colours that it names."""

    name, version, dimension, digest = "mean-colour", 1, 4, "mean colour, 64 beside it"
    texts = True

    def open(self, device: torch.device, batch_size: int) -> Describer:
        return MeanColour()


EMBEDDER = MeanColourEmbedder()


def read_list(source: Source) -> Iterator[PromptRow]:
    """A prompt in each line that begins with a dash."""
    with open_text(source.path, lines=True) as file:
        dashed = (line[2:].rstrip(b"\r\n") for line in file if line.startswith(b"- "))
        yield from (make_row(source, i, prompt, {}) for i, prompt in enumerate(dashed))


FORMAT = Format(".md-list", read_list, packed=True, digest="1")


def _halfway(denoiser: Denoiser, seed: int, k: int, _step: float) -> tuple[torch.Tensor, float]:
    return screen_latent(seed, k, denoiser.latent_shape).to(denoiser.device), denoiser.timesteps(SCREEN_STEPS)[25]


HALFWAY = Place("halfway", _halfway)


def _gap_halfway(evidence: Evidence) -> torch.Tensor:
    return noise_gap(evidence.delta_x0(HALFWAY), evidence.level(HALFWAY))


METRIC = Metric("gap_halfway", (at(HALFWAY),), _gap_halfway, digest="1")


def _clipped(model: Guided, x_BCHW: torch.Tensor, times: Sequence[float]) -> Steps:
    for i, (t, after) in enumerate(pairwise(times)):
        step = model.evaluate(i, t, x_BCHW)
        yield step
        x_BCHW = step.onward(model.level(after), step.x0.clamp(-1, 1))
    return x_BCHW


SOLVER = Solver("clipped-ddim", _clipped, digest="1")


@dataclass(frozen=True)
class LessNoise(Method):
    """Pictures begin with less noise than the model knows. left: the share of it."""

    left: float = 0.5
    source = "nowhere"

    def steer(self, case: Case) -> Steered:
        steered = plain(case)
        return replace(steered, x_T=self.left * steered.x_T)


MITIGATION = Mitigation("less-noise", LessNoise(), "left", (0.9, 0.5), digest="1")


class BrightnessSettings(Section):
    dark_below: float = 0.5


COLUMNS = {"sample_id": pa.string(), "brightness": pa.float64(), "dark": pa.bool_()}
DARK = "SELECT s.prompt_id, b.* FROM brightness b JOIN samples s USING (sample_id) WHERE b.dark"


class BrightnessStage(Stage):
    """How bright each sample is, from 0 to 1: a shard for each shard of samples."""

    name, digest = "brightness", "1"
    table = define("brightness", "brightness", ("sample_id",), COLUMNS)
    scope = "row"
    upstream = ("sample",)
    key = "sample_id"
    settings = BrightnessSettings
    views: ClassVar = {"dark_samples": DARK}
    report = ReportSection(
        "brightness",
        "Brightness",
        lambda connection: {"n": one(connection, "SELECT count(*) FROM dark_samples")},
        "<p>{{ own.n | number }} pictures are dark.</p>",
    )

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        return [Work(self.name, m.shard, m.rows, m.sha256, {"samples": m.shard}) for m in run.table(SAMPLES).current()]

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        folder = run.table(SAMPLES)
        wanted = [m for m in folder.current() if m.shard == work.payload["samples"]]
        return folder.read_all(wanted, ["sample_id", "image_path", "status"])

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        return BrightnessWorker(run.root, self.own(config).dark_below)


class BrightnessWorker:
    def __init__(self, root: Path, dark_below: float) -> None:
        self._root, self._dark_below = root, dark_below

    def process(self, rows: pa.Table) -> pa.Table:
        made = [row | self._measured(row) for row in rows.to_pylist()]
        return pa.Table.from_pylist(made, BrightnessStage.table.schema)

    def _measured(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["image_path"] is None:
            return {"brightness": None, "dark": None, "reason": Status(row["status"]).describe()}
        mean = float(decode(read_image(self._root, row["image_path"])).mean()) / 255
        return {"brightness": mean, "dark": mean < self._dark_below, "reason": None}


STAGE = BrightnessStage()
