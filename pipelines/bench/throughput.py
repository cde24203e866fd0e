"""How fast prompts are screened: ours against the field's practice, same model, prompts, machine and minute.

Rows take turns, round after round, in float32 and, where the machine has it, in bfloat16, in which released code
computes. The floor is the network alone: the bare forwards that the plan of the metrics needs, in the same batches. The
practice has its own (practice.py), so that it is no straw man. What is held against what: ratios.py.

Shapes: B latents in a forward, K seeds, C H W latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipelines.bench.cascade import DEFAULT, scores_of
from pipelines.bench.detection import audit_of
from pipelines.bench.networks import Opened, bare, forms
from pipelines.bench.practice import Ids, bare_loop, jeon, practised, wen
from pipelines.bench.ratios import Throughput
from pipelines.bench.timing import ROUNDS, Contender, Timed, timed
from pipelines.stages.score import ScoreWorker
from sharpaudit.config import AuditConfig, ScoresConfig, override
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser, load_tokenizer
from sharpaudit.devices import choose_device, cpu_has_bf16
from sharpaudit.errors import Status, UserError
from sharpaudit.lab.detectors import read_truth
from sharpaudit.lab.random_unet import RandomUNet
from sharpaudit.plugs import METRICS
from sharpaudit.scores.base import Known, Metric
from sharpaudit.scores.cascade import fit_seeds, scores_as_strangers, screen_tiers, tiers, total_seeds
from sharpaudit.scores.plan import evaluations, places
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import Subspaces, fit_subspace

SEEDS, STEP = 4, ScoresConfig().step
BATCH = 64
FEW = 16
"""Prompts a call of rows that take long."""
CORPUS = 192
"""Prompts of the cascade's corpus."""
FIT = 300
"""Fit prompts: how many there were costs a screen nothing afterwards."""
SCREENED = ("residual_gap", "noise_gap", "sharpness")
SD1_ROUNDS = 3


@dataclass(frozen=True)
class Bench:
    """A model with all that its screen needs, and prompts to screen."""

    denoiser: Denoiser
    known: Known
    subspaces: Subspaces
    prompts: list[str]

    def config(self, n_seeds: int, batch: int = BATCH) -> ScreenConfig:
        """A screen at n seeds, seed 0 and the default step."""
        return ScreenConfig(n_seeds, 0, STEP, batch)

    def screened(self, metrics: Sequence[Metric], n_prompts: int, n_seeds: int, batch: int = BATCH) -> list[float]:
        """The first metric of the first n prompts, mean over seeds."""
        config = self.config(n_seeds, batch)
        known = {place: x0_KCHW[:n_seeds] for place, x0_KCHW in self.known.items()}
        rows = screen(self.denoiser, self.prompts[:n_prompts], known, self.subspaces, config, metrics)
        if any(isinstance(row, Status) for row in rows):
            raise UserError(f"a batch of {batch} latents does not fit this machine's memory")
        found = [row.seed_values[metrics[0].name] for row in rows if not isinstance(row, Status)]
        return [float(np.mean(values)) for values in found]

    def row(self, name: str, what: str, metric: str, n_prompts: int, n_seeds: int, batch: int = BATCH) -> Contender:
        """A row that screens by one metric."""
        metrics = METRICS.of((metric,))
        nfe = sum(evaluations(metrics).values()) * n_seeds
        return Contender(name, what, n_prompts, nfe, lambda: self.screened(metrics, n_prompts, n_seeds, batch))


def bench_of(denoiser: Denoiser, prompts: Sequence[str], fit: Sequence[str]) -> Bench:
    """What an audit's fit stage leaves: empty prompts for SEEDS seeds, directions for the first."""
    config = ScreenConfig(SEEDS, 0, STEP, BATCH)
    known = unconditional_predictions(denoiser, config, places(METRICS.of(SCREENED)))
    fitted = fit_subspace(_moved(denoiser, fit, known, config), ScoresConfig().components)
    return Bench(denoiser, known, {0: fitted}, list(prompts))


def _moved(denoiser: Denoiser, fit: Sequence[str], known: Known, config: ScreenConfig) -> npt.NDArray[np.float32]:
    found = differences(denoiser, fit, known, config)
    return np.stack([row for row in found if not isinstance(row, Status)])


def cascade_row(bench: Bench, fit: Sequence[str], memorised: Sequence[str]) -> Contender:
    """The default cascade on prompts of which 1% are memorised, its threshold from the fit prompts."""
    cascade = tiers(scores_of(DEFAULT))
    config = bench.config(1)
    known = unconditional_predictions(bench.denoiser, bench.config(total_seeds(cascade)))
    moved = {k: _moved(bench.denoiser, fit, known, replace(config, first_seed=k)) for k in fit_seeds(cascade)}
    subspaces = {k: fit_subspace(moved_ND, ScoresConfig().components) for k, moved_ND in moved.items()}
    strangers = scores_as_strangers(METRICS["residual_gap"], [moved[0]], [len(subspaces[0].directions_KD)])
    threshold = float(np.quantile(strangers, DEFAULT))
    prompts = [*memorised[: round(0.01 * CORPUS)], *bench.prompts][:CORPUS]
    if len(prompts) < CORPUS:
        raise UserError(f"{len(prompts)} prompts in the lab's test split; {CORPUS} are needed to time a cascade")
    nfe = sum((1 - tier.above) * tier.n_seeds * sum(evaluations(tier.metrics).values()) for tier in cascade)

    def run() -> object:
        return screen_tiers(bench.denoiser, prompts, known, subspaces, config, cascade, {2: threshold})

    return Contender("cascade", f"cascade of {CORPUS} prompts, 1% memorised", CORPUS, nfe, run)


def loop(config: AuditConfig, bench: Bench) -> Contender:
    """The scoring stage's own loop on one shard: text, evaluations, metrics and the table."""
    known = {place: x0_KCHW[:1] for place, x0_KCHW in bench.known.items()}
    worker = ScoreWorker(load_denoiser(config.model), config, known, bench.subspaces)
    prompts = bench.prompts[: 2 * BATCH]
    ids = [f"{i:032x}" for i in range(len(prompts))]
    rows = pa.table({"prompt_id": ids, "prompt": prompts})
    nfe = sum(evaluations(METRICS.of(config.scores.metrics)).values())
    return Contender(
        "loop", f"scoring stage, {', '.join(SCREENED)}, n = 1", len(ids), nfe, lambda: worker.process(rows)
    )


def measure(
    folder: Path,
    *,
    sd1: bool = True,
    compiled: bool = False,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda _: None,
) -> Throughput:
    """Time the lab's model in float32, in bfloat16 where the machine has it, and a UNet of Stable Diffusion's size.

    folder: the lab's. compiled: also a compiled network, for which torch needs a C++ compiler. tell: is given a line of
    progress now and then. A device that CUDA gives is used.
    """
    tell("fitting what the screens need")
    lab = Lab.read(folder)
    bench = lab.bench("float32")
    tokenizer = load_tokenizer(lab.config.model)
    if not isinstance(bench.denoiser, Opened) or not isinstance(tokenizer, Ids):
        raise UserError("the lab's model has no UNet and text encoder to time; name a lab with such a model")
    rows = list(_lab_rows(lab, bench, bench.denoiser, tokenizer))
    if lab.has_bf16:
        half = lab.bench("bfloat16")
        rows += [replace(row, name=f"{row.name}.bf16") for row in _half_rows(lab, half)]
    found = timed(rows, rounds, tell=lambda told: tell(f"the lab's model, {told}"))
    alone = timed(
        list(forms(bench.denoiser, bench.prompts, BATCH, compiled=compiled)),
        rounds,
        tell=lambda told: tell(f"its network alone, {told}"),
    )
    large: dict[str, Timed] = {}
    if sd1:
        tell("a network of Stable Diffusion 1's size is built")
        # A call takes half a minute where there is no AVX-512: the first counts as well.
        large = timed(
            list(_sd1_rows(lab.device)),
            min(rounds, SD1_ROUNDS),
            warm=False,
            tell=lambda told: tell(f"a network of Stable Diffusion 1's size, {told}"),
        )
    return Throughput(found, alone, large)


@dataclass(frozen=True)
class Lab:
    """What of a lab is timed: the config of an audit of it, and its prompts by what they serve."""

    config: AuditConfig
    device: torch.device
    harmless: list[str]
    memorised: list[str]
    fit: list[str]

    @staticmethod
    def read(folder: Path) -> Lab:
        """Harmless and memorised prompts are those of the test split."""
        truth = read_truth(folder)
        harmless, memorised = (
            [row.prompt for row in truth if (row.split, row.label) == ("test", label)]
            for label in ("harmless", "memorised")
        )
        device = choose_device("auto")
        names = ", ".join(f'"{name}"' for name in SCREENED)
        settings = [f'model.device="{device.type}"', f"model.batch_size={BATCH}", f"scores.metrics=[{names}]"]
        config = override(audit_of(folder, "test", 0, every=False), settings)
        return Lab(config, device, harmless, memorised, [row.prompt for row in truth if row.split == "fit"])

    @property
    def has_bf16(self) -> bool:
        """Whether the device computes in bfloat16 by itself."""
        if self.device.type == "cpu":
            return cpu_has_bf16()
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def bench(self, dtype: str) -> Bench:
        """The model in a precision, with what its screen needs."""
        model = override(self.config, [f'model.dtype="{dtype}"']).model
        return bench_of(load_denoiser(model), self.harmless, self.fit)

    def cascade(self, bench: Bench) -> Contender:
        """The default cascade on prompts of which 1% are memorised."""
        return cascade_row(bench, self.fit, self.memorised)


def _lab_rows(lab: Lab, bench: Bench, denoiser: Opened, tokenizer: Ids) -> Iterator[Contender]:
    few, some = bench.prompts[:FEW], FEW // 2
    yield practised("wen1", wen, denoiser, few, 1)
    yield bench.row("gap1", f"noise gap, {BATCH} prompts at a time, n = 1", "noise_gap", 2 * BATCH, 1)
    yield practised("wen4", wen, denoiser, few, SEEDS)
    yield bare_loop("wen4_bare", wen, denoiser, tokenizer, few, SEEDS)
    yield bench.row("gap4", f"noise gap, {BATCH} prompts at a time, n = 4", "noise_gap", BATCH, SEEDS)
    yield practised("jeon", jeon, denoiser, few[:4], SEEDS)
    yield bare_loop("jeon_bare", jeon, denoiser, tokenizer, few[:4], SEEDS)
    yield bench.row("exact", f"exact product, {some} prompts at a time, n = 4", "sharpness_jvp", some, SEEDS, some)
    yield bench.row("fd_single", "finite difference, one prompt at a time, n = 4", "sharpness", FEW // 4, SEEDS, 1)
    yield bench.row("fd", f"finite difference, {BATCH} prompts at a time, n = 4", "sharpness", BATCH, SEEDS)
    yield bench.row("screen_single", "residual gap, one prompt at a time, n = 1", "residual_gap", 2 * FEW, 1, 1)
    yield bench.row("screen", f"residual gap, {BATCH} prompts at a time, n = 1", "residual_gap", 2 * BATCH, 1)
    yield bare(denoiser, bench.prompts, BATCH, (1,), "floor_one")
    yield lab.cascade(bench)
    yield loop(lab.config, bench)
    yield bare(denoiser, bench.prompts, BATCH)


def _half_rows(lab: Lab, bench: Bench) -> Iterator[Contender]:
    few = bench.prompts[:FEW]
    yield practised("wen4", wen, bench.denoiser, few, SEEDS)
    yield bench.row("gap4", "noise gap, n = 4", "noise_gap", BATCH, SEEDS)
    yield practised("jeon", jeon, bench.denoiser, few[:4], SEEDS)
    yield bench.row("fd", "finite difference, n = 4", "sharpness", BATCH, SEEDS)
    yield bench.row("screen", "residual gap, n = 1", "residual_gap", 2 * BATCH, 1)
    yield lab.cascade(bench)


def _sd1_rows(device: torch.device) -> Iterator[Contender]:
    denoiser = RandomUNet(device)
    prompts = ["a photograph of a harbour", "an oil painting of a fox"]
    known = unconditional_predictions(denoiser, ScreenConfig(1, 0, STEP, 2))
    yield practised("jeon", jeon, denoiser, prompts[:1], 1)
    yield Bench(denoiser, known, {}, prompts).row("fd", "finite difference, 2 prompts at a time", "sharpness", 2, 1, 2)
