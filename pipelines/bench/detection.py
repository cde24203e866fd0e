"""How well every first-step metric tells memorised prompts from harmless ones, on a split of a lab.

One audit for each seed, up to its scores, with everything that an audit of that seed fits anew. They are ordinary runs
in folders of their own, so what is committed is not evaluated again; labels are read afterwards and reach no stage.

Shapes: S seeds, N prompts, C calibration prompts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipelines.audit import run_audit
from pipelines.bench.lines import Line
from pipelines.progress import Reporter
from pipelines.stages.fit import load_subspace, load_unconditional, screen_config
from sharpaudit import config as configuration
from sharpaudit.config import AuditConfig, ModelConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.lab.detectors import COLUMNS, SEVERAL, read_truth, table
from sharpaudit.scores.metrics import METRICS, named
from sharpaudit.scores.plan import evaluations
from sharpaudit.scores.screen import screen
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, SCORES

SHARED = ("residual_gap", "noise_gap", "mean_free_gap", "attention_entropy", "score_norm")
"""One evaluation serves them all."""
OTHERS = ("sharpness", "norm_cosine", "one_step", "hessian_trace")
FULL_SEEDS = 16
GOALS = {"auc": 0.99, "auc_low": 0.98, "tpr1": 0.9, "tpr1_low": 0.8}
"""Of residual_gap on exact plants at one seed, all captions together."""
TIMED_PROMPTS = 64


@dataclass(frozen=True)
class Detection:
    """lines: as `lab.detectors.table` gives them. cost: evaluations and milliseconds a prompt and seed, by metric."""

    lines: list[dict[str, Any]]
    cost: dict[str, tuple[int, float]]

    def as_json(self) -> dict[str, Any]:
        """What a lab keeps of it: nothing that depends on the machine."""
        return {"lines": self.lines, "evaluations": {metric: n for metric, (n, _) in self.cost.items()}}


def detect(
    folder: Path,
    split: str,
    out: Path,
    *,
    full: bool = False,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Detection:
    """Score what is not yet scored in `out` and measure: 4 seeds; 16, in full, where one evaluation serves all metrics.

    folder: the lab's. Raises UserError for a prompt without a label or without a score.
    """
    truth = {row.prompt: row for row in read_truth(folder)}
    scores_SN: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
    calibration_SC: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
    cost: dict[str, tuple[int, float]] = {}
    prompts: list[str] = []
    for seed in range(FULL_SEEDS if full else SEVERAL):
        config = audit_of(folder, split, seed, every=seed < SEVERAL, overrides=overrides)
        run = _scored(config, out / f"seed-{seed}", reporter)
        prompts, found = _values(run, config, "audit")
        for metric, known in _values(run, config, "calibration")[1].items():
            scores_SN[metric].append(found[metric])
            calibration_SC[metric].append(known)
        cost = cost or dict(_costs(run, config, prompts))
    strangers = [prompt for prompt in prompts if prompt not in truth]
    if strangers:
        raise UserError(f'{folder}: no label of "{printable(strangers[0])}"; run `sharpaudit lab label` on this folder')
    lines = table([truth[prompt] for prompt in prompts], _stacked(scores_SN), _stacked(calibration_SC))
    return Detection(lines, cost)


def audit_of(folder: Path, split: str, seed: int, *, every: bool, overrides: Sequence[str] = ()) -> AuditConfig:
    """The audit of a split of a lab at one seed, by the metrics that its model can give. every: or only the shared."""
    model = ModelConfig(path=str(folder.absolute() / "model"), dtype="float32", device="cpu")
    able = load_denoiser(model).records_attention
    names = [n for n in (*SHARED, *(OTHERS if every else ())) if able or "attention" not in METRICS[n].needs]
    tree: dict[str, Any] = {
        "name": f"detection-{split}-{seed}",
        "seed": seed,
        "model": model.model_dump(mode="json"),
        "scores": {"metrics": names},
        "corpus": {"audit": f"prompts/{split}.csv", "family_column": "family"},
        "calibration": {"fit": "prompts/fit.csv", "calibrate": "prompts/calibration.csv", "family_column": "family"},
        "matches": {"index": "references"},
    }
    config = configuration.resolve_paths(configuration.parse(tree, str(folder)), folder.absolute())
    return configuration.override(config, overrides)


def bench_lines(found: Detection) -> Iterator[Line]:
    """Exact plants, all captions, one seed: AUC and TPR at 1% FPR of every metric, with the goals of residual_gap."""
    short = {"auc": "auc", "tpr_at_1_percent_fpr": "tpr1"}
    for line in found.lines:
        if (line["n"], line["plants"], line["captions"]) != (1, "exact", "all") or line["statistic"] not in short:
            continue
        goals = GOALS if line["metric"] == "residual_gap" else {}
        figure, n = short[line["statistic"]], line["memorised"]
        name = f"{line['metric']}.n1.exact.{figure}"
        yield Line(name, line["mean"], "share", n, line["low"], line["high"], goals.get(figure))
        yield Line(f"{name}_low", line["low"], "share", n, goal=goals.get(f"{figure}_low"))


def markdown(found: Detection) -> str:
    """The table for people: a line per metric, seeds, plants and captions."""
    head = ["metric", "n", "NFE", "ms", "plants", "captions", "seeds", "memorised", "harmless", *COLUMNS.values()]
    rows: list[list[object]] = [[*head], ["---"] * len(head)]
    keyed = {(*_key(line), line["statistic"]): line for line in found.lines}
    for metric, n, plants, captions in dict.fromkeys(_key(line) for line in found.lines):
        nfe, ms = found.cost[metric]
        figures = [keyed[metric, n, plants, captions, name] for name in COLUMNS]
        sizes = [figures[0][name] for name in ("seeds", "memorised", "harmless")]
        rows.append([metric, n, nfe * n, f"{ms * n:.1f}", plants, captions, *sizes, *map(_shown, figures)])
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"


def _key(line: dict[str, Any]) -> tuple[str, int, str, str]:
    return line["metric"], line["n"], line["plants"], line["captions"]


def _shown(line: dict[str, Any]) -> str:
    # Of a false-positive rate the worst seed is the highest one.
    worst = "maximum" if line["statistic"].startswith("fpr") else "minimum"
    seeds = f", worst {line[worst]:.3f}" if line["seeds"] > 1 else ""
    return f"{line['mean']:.3f} ({line['low']:.3f} to {line['high']:.3f}{seeds})"


def _scored(config: AuditConfig, root: Path, reporter: Reporter | None) -> RunFolder:
    outcome = run_audit(config, root, update=True, reporter=reporter, until="score")
    if outcome.quarantined:
        lost = sum(entry["rows"] for entry in outcome.quarantined)
        raise UserError(f"{root}: {lost} prompts were set aside; a table needs all of them: lower model.batch_size")
    return RunFolder.open(root)


def _values(run: RunFolder, config: AuditConfig, role: str) -> tuple[list[str], dict[str, npt.NDArray[np.float64]]]:
    """Prompts with this role in the order of their ids, and each metric's value, (N,)."""
    corpus, scores = run.table(CORPUS), run.table(SCORES)
    rows = corpus.read_all(corpus.current(), ["prompt_id", "prompt", "role"]).sort_by("prompt_id")
    rows = rows.filter(pc.field("role") == role)
    ids = rows["prompt_id"].to_pylist()
    every = scores.read_all(scores.current(), ["prompt_id", "metric", "value"])
    found: dict[str, npt.NDArray[np.float64]] = {}
    for metric in config.scores.metrics:
        made = every.filter(pc.field("metric") == metric)
        at = dict(zip(made["prompt_id"].to_pylist(), made["value"].to_pylist(), strict=True))
        lost = [i for i in ids if at.get(i) is None]
        if lost:
            raise UserError(f"{metric}: {len(lost)} prompts have no score, the first is {lost[0]}; a table needs all")
        found[metric] = np.array([at[i] for i in ids], dtype=np.float64)
    return rows["prompt"].to_pylist(), found


def _stacked(found: dict[str, list[npt.NDArray[np.float64]]]) -> dict[str, npt.NDArray[np.float64]]:
    return {metric: np.stack(rows) for metric, rows in found.items()}


def _costs(run: RunFolder, config: AuditConfig, prompts: Sequence[str]) -> Iterator[tuple[str, tuple[int, float]]]:
    """Each metric alone: evaluations per prompt and seed, and milliseconds on this machine, after a first call."""
    denoiser, known, subspace = load_denoiser(config.model), load_unconditional(run, config), load_subspace(run)
    some = list(prompts[:TIMED_PROMPTS])
    for metric in named(config.scores.metrics):
        screen(denoiser, some, known, subspace, screen_config(config), (metric,))
        begun = time.monotonic()
        rows = screen(denoiser, some, known, subspace, screen_config(config), (metric,))
        spent = time.monotonic() - begun
        if any(isinstance(row, Status) for row in rows):
            raise UserError(f"{metric.name}: a prompt could not be scored while timing; lower model.batch_size")
        yield metric.name, (sum(evaluations((metric,)).values()), 1000 * spent / len(some))
