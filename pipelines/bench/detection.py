"""How well every first-step metric tells memorised prompts from harmless ones, on a split of a lab.

One audit for each seed, up to its scores, with everything that an audit of that seed fits anew. They are ordinary runs
in folders of their own, so what is committed is not evaluated again; labels are read afterwards and reach no stage.

Shapes: S seeds, N prompts, C calibration prompts.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.audit import run_audit
from pipelines.bench.lines import Line
from pipelines.bench.lines import table as markdown_table
from pipelines.flow.progress import Reporter
from pipelines.stages.fit import load_subspaces, load_unconditional, screen_config
from sharpaudit import config as configuration
from sharpaudit.config import AuditConfig, ModelConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.lab.detectors import CAPTIONS, GROUPS, INTERVALS, SEVERAL, Truth, balanced, columns, read_truth, table
from sharpaudit.plugs import METRICS
from sharpaudit.scores.base import ATTENTION
from sharpaudit.scores.plan import evaluations
from sharpaudit.scores.screen import screen
from sharpaudit.scores.sharpness import SHARPNESS_JVP
from sharpaudit.tables.records import export_file
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, SCORES

SHARED = ("residual_gap", "noise_gap", "mean_free_gap", "attention_entropy", "score_norm")
"""One evaluation serves them all."""
OTHERS = ("sharpness", "norm_cosine", "one_step", "hessian_trace")
FULL_SEEDS = 16
GOALS = {
    "residual_gap.n1.exact.auc": 0.99,
    "residual_gap.n1.exact.auc_low": 0.98,
    "residual_gap.n1.exact.tpr1": 0.9,
    "residual_gap.n1.exact.tpr1_low": 0.8,
    "noise_gap.n1.free.auc": 0.98,
    "noise_gap.n1.free.tpr1": 0.8,
    "sharpness.n1.free.auc": 0.98,
    "sharpness.n1.free.tpr1": 0.8,
    "sharpness.n4.free.auc": 0.99,
    "sharpness.n4.free.tpr1": 0.85,
}
"""On the lab's exact plants: what decides, on all captions; what the literature has, on captions that leave the ground
free (`free`), as captions of photographs do."""
SHOWN = {(1, "all"): "n1.exact", (1, "naming none"): "n1.free", (SEVERAL, "naming none"): "n4.free"}
"""Lines of exact plants that a bench tells, by number of seeds and captions."""
MINUTES = {False: 10.0, True: 20.0}
"""The most that the table of the lab's test split may take, in full or not."""
ONE_TIER = ("scores.n_seeds=1", "scores.then=[]")
"""Rows of n = 1 are of one seed, whatever a config asks of an audit."""
TIMED_PROMPTS = 64
FEW = 100
"""Prompts that forward mode is shown on."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Detection:
    """lines: as `lab.detectors.table` gives them. cost: evaluations and milliseconds a prompt and seed, by metric."""

    lines: list[dict[str, Any]]
    cost: dict[str, tuple[int, float]]

    def as_json(self) -> dict[str, Any]:
        """What a lab keeps of it: nothing that depends on the machine."""
        spent = {metric: n for metric, (n, _) in self.cost.items()}
        return {"intervals": INTERVALS, "lines": self.lines, "evaluations": spent}


@dataclass(frozen=True)
class LabSplit:
    """A split of a lab: labels from its truth.csv, an audit of its prompts for each seed."""

    folder: Path
    split: str
    overrides: Sequence[str] = ()
    captions = tuple(CAPTIONS)

    def audit(self, seed: int, *, every: bool) -> AuditConfig:
        """The audit at one seed, by all metrics that the model can give or by those of the shared evaluation."""
        return audit_of(self.folder, self.split, seed, every=every, overrides=self.overrides)

    def truth(self, prompts: Sequence[Prompt]) -> list[Truth]:
        """The labels of the prompts. Raises UserError for a prompt that has none."""
        known = {row.prompt: row for row in read_truth(self.folder)}
        strangers = [prompt.text for prompt in prompts if prompt.text not in known]
        if strangers:
            told = printable(strangers[0])
            raise UserError(f'{self.folder}: no label of "{told}"; run `sharpaudit lab label` on this folder')
        return [known[prompt.text] for prompt in prompts]


@dataclass(frozen=True)
class Configured:
    """An audit of any model: its positive controls are the memorised prompts, what it audits are harmless ones."""

    config: AuditConfig
    captions = ("all",)

    def audit(self, seed: int, *, every: bool) -> AuditConfig:
        """The audit at one seed. Raises UserError without positive controls."""
        if self.config.corpus.positive_controls is None:
            raise UserError("corpus.positive_controls: a bench needs prompts known to be memorised; name their file")
        names = ", ".join(f'"{name}"' for name in _able(self.config.model, every))
        return configuration.override(self.config, [f"seed={seed}", f"scores.metrics=[{names}]", *ONE_TIER])

    def truth(self, prompts: Sequence[Prompt]) -> list[Truth]:
        """Labels by role."""
        kinds = {"positive_control": ("exact", "memorised"), "audit": ("unseen", "harmless")}
        return [Truth(prompt.text, "", prompt.family, *kinds[prompt.role]) for prompt in prompts]


@dataclass(frozen=True)
class Prompt:
    """A scored prompt."""

    text: str
    role: str
    family: str


def detect(
    source: LabSplit | Configured, out: Path, *, full: bool = False, reporter: Reporter | None = None
) -> Detection:
    """Score what is not yet scored in `out` and measure: 4 seeds; 16, in full, where one evaluation serves all metrics.

    In full also forward mode on FEW prompts. Raises UserError for a prompt without a label or without a score.
    """
    scores_SN: dict[str, list[Values]] = defaultdict(list)
    calibration_SC: dict[str, list[Values]] = defaultdict(list)
    cost: dict[str, tuple[int, float]] = {}
    exact: tuple[list[dict[str, Any]], dict[str, tuple[int, float]]] = [], {}
    # Before anything is evaluated: are there labels at all?
    truth = source.truth([])
    for seed in range(FULL_SEEDS if full else SEVERAL):
        config = source.audit(seed, every=seed < SEVERAL)
        run = _scored(config, out / f"seed-{seed}", reporter)
        prompts, found = _values(run, config, ("audit", "positive_control"))
        for metric, known in _values(run, config, ("calibration",))[1].items():
            scores_SN[metric].append(found[metric])
            calibration_SC[metric].append(known)
        if not seed:
            truth = source.truth(prompts)
            cost = dict(_costs(run, config, [prompt.text for prompt in prompts]))
            exact = _forward_mode(run, config, truth) if full else exact
    lines = table(truth, _stacked(scores_SN), _stacked(calibration_SC), source.captions)
    return Detection([*lines, *exact[0]], cost | exact[1])


def at_first_seed(source: LabSplit | Configured, out: Path) -> tuple[list[Truth], dict[str, Values], dict[str, Values]]:
    """What `detect` scored at seed 0: labels, and each metric's values of audited and of calibration prompts."""
    run, config = RunFolder.open(out / "seed-0"), source.audit(0, every=True)
    prompts, found = _values(run, config, ("audit", "positive_control"))
    return source.truth(prompts), found, _values(run, config, ("calibration",))[1]


def _forward_mode(
    run: RunFolder, config: AuditConfig, truth: Sequence[Truth]
) -> tuple[list[dict[str, Any]], dict[str, tuple[int, float]]]:
    """The reference path of sharpness at one seed on FEW prompts, half of them memorised exact plants if there are.

    Returns lines and cost as a Detection has them.
    """
    few = balanced(truth, FEW)
    settings = replace(screen_config(config), batch_size=8)
    known, prompts = load_unconditional(run, config), [row.prompt for row in few]
    denoiser, begun = load_denoiser(config.model), time.monotonic()
    rows = screen(denoiser, prompts, known, {}, settings, (SHARPNESS_JVP,))
    spent = time.monotonic() - begun
    if any(isinstance(row, Status) for row in rows):
        raise UserError("sharpness_jvp: a prompt could not be evaluated; a table needs all of them")
    values = np.array([row.mean("sharpness_jvp") for row in rows if not isinstance(row, Status)])
    cost = sum(evaluations((SHARPNESS_JVP,)).values()), 1000 * spent / len(few)
    return table(few, {"sharpness_jvp": values[None]}, {}, ("all",)), {"sharpness_jvp": cost}


def audit_of(folder: Path, split: str, seed: int, *, every: bool, overrides: Sequence[str] = ()) -> AuditConfig:
    """The audit of a split of a lab at one seed, by the metrics that its model can give. every: or only the shared."""
    model = ModelConfig(path=str(folder.absolute() / "model"), dtype="float32", device="cpu")
    tree: dict[str, Any] = {
        "name": f"detection-{split}-{seed}",
        "seed": seed,
        "model": model.model_dump(mode="json"),
        "scores": {"metrics": _able(model, every)},
        "corpus": {"audit": f"prompts/{split}.csv", "family_column": "family"},
        "calibration": {"fit": "prompts/fit.csv", "calibrate": "prompts/calibration.csv", "family_column": "family"},
        "matches": {"index": "references"},
    }
    config = configuration.resolve_paths(configuration.parse(tree, str(folder)), folder.absolute())
    return configuration.override(config, [*overrides, *ONE_TIER])


def _able(model: ModelConfig, every: bool) -> list[str]:
    """The metrics that a model can give, all of them or those that share one evaluation."""
    maps = bool(load_denoiser(model).attention_layers)
    return [n for n in (*SHARED, *(OTHERS if every else ())) if maps or ATTENTION not in METRICS[n].needs]


def bench_lines(found: Detection, goals: Mapping[str, float]) -> Iterator[Line]:
    """Exact plants as SHOWN: AUC and TPR at 1% FPR of every metric. goals: by the line's name.

    n: memorised prompts; of the worst seed, seeds.
    """
    short = {"auc": "auc", "tpr_at_1_percent_fpr": "tpr1"}
    for line in found.lines:
        shown = SHOWN.get((line["n"], line["captions"])) if line["plants"] == "exact" else None
        if shown is None or line["statistic"] not in short:
            continue
        name, n = f"{line['metric']}.{shown}.{short[line['statistic']]}", line["memorised"]
        yield Line(name, line["mean"], "share", n, line["low"], line["high"], goals.get(name))
        yield Line(f"{name}_low", line["low"], "share", n, goal=goals.get(f"{name}_low"))
        if line["seeds"] > 1:
            yield Line(f"{name}_worst", line["minimum"], "share", line["seeds"])


def write(found: Detection, folder: Path) -> None:
    """The table for people and for machines: table.md and table.json in the folder."""
    export_file(folder / "table.md", markdown(found).encode())
    export_file(folder / "table.json", f"{json.dumps(found.as_json(), indent=1)}\n".encode())


def markdown(found: Detection) -> str:
    """The tables for people, one for each kind of plants and captions: a line per metric and number of seeds."""
    shown = columns(found.lines)
    head = ["metric", "n", "NFE", "ms", "seeds", "memorised", "harmless", *shown.values()]
    keyed = {(*_key(line), line["statistic"]): line for line in found.lines}
    tables: dict[str, list[list[object]]] = {}
    for metric, n, plants, captions in dict.fromkeys(_key(line) for line in found.lines):
        nfe, ms = found.cost[metric]
        figures = [keyed.get((metric, n, plants, captions, name)) for name in shown]
        sizes = [keyed[metric, n, plants, captions, "auc"][name] for name in ("seeds", "memorised", "harmless")]
        title = f"{GROUPS[plants]}, {'all captions' if captions == 'all' else f'captions {captions}'}"
        tables.setdefault(title, []).append([metric, n, nfe * n, f"{ms * n:.1f}", *sizes, *map(_shown, figures)])
    return "\n".join(f"{title}\n\n{markdown_table(head, rows)}" for title, rows in tables.items())


def _key(line: dict[str, Any]) -> tuple[str, int, str, str]:
    return line["metric"], line["n"], line["plants"], line["captions"]


def _shown(line: dict[str, Any] | None) -> str:
    if line is None:
        return "not measured"
    # Of a false-positive rate the worst seed is the highest one.
    worst = "maximum" if line["statistic"].startswith("fpr") else "minimum"
    seeds = f", sd {line['sd']:.3f}, worst {line[worst]:.3f}" if line["seeds"] > 1 else ""
    return f"{line['mean']:.3f} ({line['low']:.3f} to {line['high']:.3f}{seeds})"


def _scored(config: AuditConfig, root: Path, reporter: Reporter | None) -> RunFolder:
    outcome = run_audit(config, root, update=True, reporter=reporter, until="score")
    if outcome.quarantined:
        lost = sum(entry["rows"] for entry in outcome.quarantined)
        raise UserError(f"{root}: {lost} prompts were set aside; a table needs all of them: lower model.batch_size")
    return RunFolder.open(root)


def _values(run: RunFolder, config: AuditConfig, roles: Sequence[str]) -> tuple[list[Prompt], dict[str, Values]]:
    """Prompts with these roles in the order of their ids, and each metric's value, (N,)."""
    corpus, scores = run.table(CORPUS), run.table(SCORES)
    columns = ["prompt_id", "prompt", "role", "family_id"]
    rows = corpus.read_all(corpus.current(), columns).sort_by("prompt_id")
    rows = rows.filter(pc.is_in(rows["role"], pa.array(roles)))
    ids = rows["prompt_id"].to_pylist()
    every = scores.read_all(scores.current(), ["prompt_id", "metric", "value"])
    found: dict[str, Values] = {}
    for metric in config.scores.metrics:
        made = every.filter(pc.field("metric") == metric)
        at = dict(zip(made["prompt_id"].to_pylist(), made["value"].to_pylist(), strict=True))
        lost = [i for i in ids if at.get(i) is None]
        if lost:
            raise UserError(f"{metric}: {len(lost)} prompts have no score, the first is {lost[0]}; a table needs all")
        found[metric] = np.array([at[i] for i in ids], dtype=np.float64)
    return [Prompt(*row) for row in zip(*(rows[name].to_pylist() for name in columns[1:]), strict=True)], found


def _stacked(found: dict[str, list[Values]]) -> dict[str, Values]:
    return {metric: np.stack(rows) for metric, rows in found.items()}


def _costs(run: RunFolder, config: AuditConfig, prompts: Sequence[str]) -> Iterator[tuple[str, tuple[int, float]]]:
    """Each metric alone: evaluations per prompt and seed, and milliseconds on this machine, after a first call."""
    denoiser, known, subspaces = load_denoiser(config.model), load_unconditional(run, config), load_subspaces(run)
    some = list(prompts[:TIMED_PROMPTS])
    for metric in METRICS.of(config.scores.metrics):
        screen(denoiser, some, known, subspaces, screen_config(config), (metric,))
        begun = time.monotonic()
        rows = screen(denoiser, some, known, subspaces, screen_config(config), (metric,))
        spent = time.monotonic() - begun
        if any(isinstance(row, Status) for row in rows):
            raise UserError(f"{metric.name}: a prompt could not be scored while timing; lower model.batch_size")
        yield metric.name, (sum(evaluations((metric,)).values()), 1000 * spent / len(some))
