"""How fast prompts are screened: ours against the field's practice, same model, prompts, machine and minute.

Rows take turns, round after round; a figure is the median over rounds of the ratio to the baseline's rate in the same
round, its interval the range over the rounds.

The baseline is what released detectors do: one prompt at a time, text encoded anew, the conditional and the empty
prompt in each forward, then the exact Jacobian product of both by forward-mode differentiation with math attention.
The floor is the network alone: the bare forwards that the plan of the metrics needs, in the same batches.

Shapes: B latents in a forward, K seeds, C H W latent.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.bench.cascade import DEFAULT, scores_of
from pipelines.bench.detection import audit_of
from pipelines.bench.lines import Line, table
from pipelines.bench.networks import bare, forms
from pipelines.bench.timing import ROUNDS, Row, Timed, ratio, timed
from pipelines.stages.score import ScoreWorker
from sharpaudit.config import AuditConfig, ScoresConfig, override
from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.denoisers.devices import choose_device, cpu_has_bf16
from sharpaudit.denoisers.diffusion import DiffusionDenoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.lab.detectors import read_truth
from sharpaudit.lab.random_unet import RandomUNet
from sharpaudit.scores.base import Known, Metric
from sharpaudit.scores.cascade import fit_seeds, scores_as_strangers, screen_tiers, tiers, total_seeds
from sharpaudit.scores.metrics import named
from sharpaudit.scores.plan import evaluations, places
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import Subspaces, fit_subspace
from sharpaudit.seeds import screen_latent

SEEDS = 4
BATCH = 64
CORPUS = 400
"""Prompts of the cascade's corpus."""
GOALS = {
    "float32": {"speed.fd": 5.0, "speed.screen": 60.0, "speed.cascade": 30.0},
    "bfloat16": {"speed.fd.bf16": 8.0, "speed.screen.bf16": 80.0, "speed.cascade.bf16": 40.0},
}
"""Prompts per second over the baseline's, which is always in float32."""
COMMON_GOALS = {"speed.sd1_fd": 2.0, "speed.floor_share": 0.85}
METRICS = ("residual_gap", "noise_gap", "sharpness")
RELEASED_RATE = 4.1
"""Prompts a second that released code of the sharpness metric made on a UNet of the lab's size: the baseline is held
against it, so that it is no straw man."""


def field_practice(denoiser: Denoiser, prompt: str, x_KCHW: torch.Tensor) -> float:
    """Mean over seeds of ||DH Ds|| as released code computes it: 2 K forwards, then a product of all 2 K rows."""
    n, t = len(x_KCHW), denoiser.first_timestep()
    parts = [denoiser.encode([text]).select([0] * n) for text in ("", prompt)]
    both, level = Conditioning.stack(parts), denoiser.level(t)

    def scores(x: torch.Tensor) -> torch.Tensor:
        x_2KCHW = torch.cat([x, x])
        return (level.a * denoiser.predict(x_2KCHW, t, both).x0_hat - x_2KCHW) / level.sigma**2

    s_0, s_c = scores(x_KCHW).chunk(2)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script")
        h_0, h_c = torch.func.jvp(scores, (x_KCHW,), (s_c - s_0,))[1].chunk(2)
    return float(torch.linalg.vector_norm((h_c - h_0).flatten(1), dim=1).mean())


@dataclass(frozen=True)
class Bench:
    """A model with all that its screen needs, and prompts to screen."""

    denoiser: Denoiser
    known: Known
    subspaces: Subspaces
    prompts: list[str]

    def config(self, n_seeds: int, batch: int = BATCH) -> ScreenConfig:
        """A screen at n seeds, seed 0 and the default step."""
        return ScreenConfig(n_seeds, 0, 1.0, batch)

    def screened(self, metrics: Sequence[Metric], n_prompts: int, n_seeds: int, batch: int = BATCH) -> list[float]:
        """The first metric of the first n prompts, mean over seeds."""
        config = self.config(n_seeds, batch)
        known = {place: x0_KCHW[:n_seeds] for place, x0_KCHW in self.known.items()}
        rows = screen(self.denoiser, self.prompts[:n_prompts], known, self.subspaces, config, metrics)
        if any(isinstance(row, Status) for row in rows):
            raise UserError(f"a batch of {batch} latents does not fit this machine's memory")
        found = [row.seed_values[metrics[0].name] for row in rows if not isinstance(row, Status)]
        return [float(np.mean(values)) for values in found]

    def row(self, name: str, what: str, metric: str, n_prompts: int, n_seeds: int, batch: int = BATCH) -> Row:
        """A row that screens by one metric."""
        metrics = named((metric,))
        nfe = sum(evaluations(metrics).values()) * n_seeds
        return Row(name, what, n_prompts, nfe, lambda: self.screened(metrics, n_prompts, n_seeds, batch))


def bench_of(denoiser: Denoiser, prompts: Sequence[str], fit: Sequence[str]) -> Bench:
    """What an audit's fit stage leaves: empty prompts for SEEDS seeds, directions for the first."""
    config = ScreenConfig(SEEDS, 0, 1.0, BATCH)
    known = unconditional_predictions(denoiser, config, places(named(METRICS)))
    fitted = fit_subspace(_moved(denoiser, fit, known, config), ScoresConfig().components)
    return Bench(denoiser, known, {0: fitted}, list(prompts))


def _moved(denoiser: Denoiser, fit: Sequence[str], known: Known, config: ScreenConfig) -> npt.NDArray[np.float32]:
    found = differences(denoiser, fit, known, config)
    return np.stack([row for row in found if not isinstance(row, Status)])


def cascade_row(name: str, what: str, bench: Bench, fit: Sequence[str], memorised: Sequence[str]) -> Row:
    """The default cascade on prompts of which 1% are memorised, its threshold from the fit prompts."""
    cascade = tiers(scores_of(DEFAULT))
    config = bench.config(1)
    known = unconditional_predictions(bench.denoiser, bench.config(total_seeds(cascade)))
    moved = {k: _moved(bench.denoiser, fit, known, replace(config, first_seed=k)) for k in fit_seeds(cascade)}
    subspaces = {k: fit_subspace(moved_ND, ScoresConfig().components) for k, moved_ND in moved.items()}
    strangers = scores_as_strangers("residual_gap", [moved[0]], [len(subspaces[0].directions_KD)])
    threshold = float(np.quantile(strangers, DEFAULT))
    prompts = [*memorised[: round(0.01 * CORPUS)], *bench.prompts][:CORPUS]
    if len(prompts) < CORPUS:
        raise UserError(f"{len(prompts)} prompts in the lab's test split; {CORPUS} are needed to time a cascade")
    nfe = sum((1 - tier.above) * tier.n_seeds * sum(evaluations(tier.metrics).values()) for tier in cascade)

    def run() -> object:
        return screen_tiers(bench.denoiser, prompts, known, subspaces, config, cascade, {2: threshold})

    return Row(name, what, CORPUS, nfe, run)


def baseline(bench: Bench, n_prompts: int, n_seeds: int) -> Row:
    """The field's practice on the first prompts."""
    latent = bench.denoiser.latent_shape
    x_KCHW = torch.stack([screen_latent(0, k, latent) for k in range(n_seeds)]).to(bench.denoiser.device)

    def run() -> list[float]:
        with torch.no_grad():
            return [field_practice(bench.denoiser, prompt, x_KCHW) for prompt in bench.prompts[:n_prompts]]

    what = f"field's practice: one prompt at a time, both branches, exact product, n = {n_seeds}"
    return Row("baseline", what, n_prompts, 8 * n_seeds, run)


def loop(config: AuditConfig, bench: Bench) -> Row:
    """The scoring stage's own loop on one shard: text, evaluations, metrics and the table."""
    known = {place: x0_KCHW[:1] for place, x0_KCHW in bench.known.items()}
    worker = ScoreWorker(load_denoiser(config.model), config, known, bench.subspaces)
    prompts = bench.prompts[: 2 * BATCH]
    ids = [f"{i:032x}" for i in range(len(prompts))]
    rows = pa.table({"prompt_id": ids, "prompt": prompts})
    nfe = sum(evaluations(named(config.scores.metrics)).values())
    return Row("loop", f"scoring stage, {', '.join(METRICS)}, n = 1", len(ids), nfe, lambda: worker.process(rows))


@dataclass(frozen=True)
class Throughput:
    """tables: the rows of each part with its first row as the reference. lines: for machines."""

    tables: dict[str, dict[str, Timed]]
    lines: list[Line]


def measure(folder: Path, *, sd1: bool = True, compiled: bool = False, rounds: int = ROUNDS) -> Throughput:
    """Time the lab's model in float32, in bfloat16 where the machine has it, and a UNet of Stable Diffusion's size.

    folder: the lab's. compiled: also a compiled network, for which torch needs a C++ compiler. A device that CUDA gives
    is used.
    """
    truth = [row for row in read_truth(folder) if row.split in ("test", "fit")]
    prompts = [row.prompt for row in truth if row.split == "test" and row.label == "harmless"]
    memorised = [row.prompt for row in truth if row.split == "test" and row.label == "memorised"]
    fit = [row.prompt for row in truth if row.split == "fit"]
    device = choose_device("auto")
    config = override(audit_of(folder, "test", 0, every=False), _settings(device))
    bench = bench_of(load_denoiser(config.model), prompts, fit)
    rows = list(_lab_rows(bench, config))
    rows.insert(-2, cascade_row("cascade", f"cascade of {CORPUS} prompts, 1% memorised", bench, fit, memorised))
    bf16 = cpu_has_bf16() if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
    if bf16:
        half = load_denoiser(override(config, ['model.dtype="bfloat16"']).model)
        other = bench_of(half, prompts, fit)
        rows += [other.row("fd.bf16", "finite difference in bfloat16, n = 4", "sharpness", BATCH, SEEDS)]
        rows += [other.row("screen.bf16", "residual gap in bfloat16, n = 1", "residual_gap", 2 * BATCH, 1)]
        rows += [cascade_row("cascade.bf16", "cascade in bfloat16", other, fit, memorised)]
    found = timed(rows, rounds)
    goals = GOALS["float32"] | GOALS["bfloat16"]
    lines = [
        ratio(f"speed.{name}", timing, found["baseline"], goals.get(f"speed.{name}"))
        for name, timing in found.items()
        if name not in ("baseline", "floor", "floor_one", "loop")
    ]
    lines.append(ratio("speed.floor_share", found["loop"], found["floor"], COMMON_GOALS["speed.floor_share"]))
    lines.append(ratio("speed.screen_floor_share", found["screen"], found["floor_one"], None))
    rates = found["baseline"].rates
    lines.append(Line("speed.baseline", statistics.median(rates), "prompts/s", len(rates), min(rates), max(rates)))
    tables = {"lab": found, "forms": timed(list(_forms(bench, compiled=compiled)), rounds)}
    form = tables["forms"]
    lines += [ratio(f"speed.{name}", form[name], form["forward"], None) for name in form if name != "forward"]
    if sd1:
        tables["sd1"] = timed(list(_sd1_rows(device)), rounds)
        big = tables["sd1"]
        lines.append(ratio("speed.sd1_fd", big["fd"], big["baseline"], COMMON_GOALS["speed.sd1_fd"]))
    return Throughput(tables, lines)


def needed(found: Throughput, *, sd1: bool) -> list[str]:
    """Names that a whole measurement has, on the machine where it was made; sd1: with the larger network."""
    half = any(line.name.endswith(".bf16") for line in found.lines)
    common = [name for name in COMMON_GOALS if sd1 or "sd1" not in name]
    return [*GOALS["float32"], *(GOALS["bfloat16"] if half else ()), *common]


def _settings(device: torch.device) -> list[str]:
    names = ", ".join(f'"{name}"' for name in METRICS)
    return [f'model.device="{device.type}"', f"model.batch_size={BATCH}", f"scores.metrics=[{names}]"]


def _lab_rows(bench: Bench, config: AuditConfig) -> Iterator[Row]:
    yield baseline(bench, 4, SEEDS)
    yield bench.row("exact_single", "exact product, empty prompt evaluated once a run", "sharpness_jvp", 4, SEEDS, 1)
    yield bench.row("exact", f"the same, {BATCH} prompts at a time, n = 4", "sharpness_jvp", BATCH, SEEDS)
    yield bench.row("fd_single", "finite difference, one prompt at a time, n = 4", "sharpness", 8, SEEDS, 1)
    yield bench.row("fd", f"finite difference, {BATCH} prompts at a time, n = 4", "sharpness", BATCH, SEEDS)
    yield bench.row("screen_single", "residual gap, one prompt at a time, n = 1", "residual_gap", 32, 1, 1)
    yield bench.row("screen", f"residual gap, {BATCH} prompts at a time, n = 1", "residual_gap", 2 * BATCH, 1)
    denoiser = bench.denoiser
    if not isinstance(denoiser, DiffusionDenoiser):
        raise UserError("the lab's model is no diffusion model; name a lab with a network to time")
    yield bare(denoiser, bench.prompts, BATCH, (1,), "floor_one")
    yield loop(config, bench)
    yield bare(denoiser, bench.prompts, BATCH)


def _forms(bench: Bench, *, compiled: bool) -> Iterator[Row]:
    if isinstance(bench.denoiser, DiffusionDenoiser):
        yield from forms(bench.denoiser, bench.prompts, BATCH, compiled=compiled)


def _sd1_rows(device: torch.device) -> Iterator[Row]:
    denoiser = RandomUNet(device)
    prompts = ["a photograph of a harbour", "an oil painting of a fox"]
    known = unconditional_predictions(denoiser, ScreenConfig(1, 0, 1.0, 2))
    bench = Bench(denoiser, known, {}, prompts)
    yield baseline(bench, 2, 1)
    yield bench.row("fd", "finite difference, 2 prompts at a time, n = 1", "sharpness", 2, 1, 2)
    yield bare(denoiser, prompts, 2)


def markdown(found: Throughput) -> str:
    """The tables for people."""
    parts = []
    titles = {
        "lab": "The lab's model",
        "forms": "The network alone",
        "sd1": "A UNet of Stable Diffusion 1's size, random weights, 4 x 32 x 32 latents",
    }
    for name, rows in found.tables.items():
        first = next(iter(rows.values()))
        lines = []
        for timing in rows.values():
            line = ratio("", timing, first, None)
            rate = statistics.median(timing.rates)
            shown = f"{line.value:.1f} ({line.low:.1f} to {line.high:.1f})"
            lines.append([timing.row.what, f"{timing.row.nfe:g}", f"{rate:.3g}", shown])
        head = ["", "NFE a prompt", "prompts a second", "times the first row"]
        parts.append(f"{titles[name]}\n\n{table(head, lines)}")
    rate = statistics.median(found.tables["lab"]["baseline"].rates)
    parts.append(
        f"The field's practice made {rate:.2g} prompts a second here; released code made {RELEASED_RATE} on a UNet of "
        "this size and 2 cores with AVX-512.\n"
    )
    return "\n".join(parts)
