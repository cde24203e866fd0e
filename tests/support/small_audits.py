"""Audits of a few prompts, as the tables that triage reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from sharpaudit.config import AuditConfig
from sharpaudit.triage.decide import decide
from sharpaudit.triage.select import select

METRIC, TIER = "residual_gap", 1


@dataclass(frozen=True)
class Prompt:
    """name stands for prompt_id. status: that of its score row, None where the shard was lost."""

    name: str
    role: str = "audit"
    value: float | None = None
    family: str | None = None
    status: str | None = "ok"
    tier: int = TIER
    style: str | None = None


def settings_of(seed=0, triage=None, samples=None):
    """A configuration that differs from the default in what is given."""
    return AuditConfig.model_validate(
        {
            "seed": seed,
            "model": {"path": "model"},
            "corpus": {"audit": "audit.csv"},
            "calibration": {"file": "harmless.csv"},
            "matches": {"index": "index"},
            "triage": triage or {},
            "samples": samples or {},
        }
    )


def tables(prompts: Sequence[Prompt]) -> tuple[pa.Table, pa.Table]:
    """corpus and scores."""
    scored = [p for p in prompts if p.role != "fit" and p.status is not None]
    corpus = {
        "prompt_id": [p.name for p in prompts],
        "role": [p.role for p in prompts],
        "family_id": [p.family or p.name for p in prompts],
        "style": pa.array([p.style for p in prompts], pa.string()),
    }
    scores = {
        "prompt_id": pa.array([p.name for p in scored], pa.string()),
        "tier": pa.array([p.tier for p in scored], pa.int32()),
        "metric": pa.array([METRIC] * len(scored), pa.string()),
        "value": pa.array([p.value for p in scored], pa.float64(), from_pandas=False),
        "status": pa.array([p.status for p in scored], pa.string()),
        "reason": pa.array([None if p.status == "ok" else f"why {p.name} failed" for p in scored], pa.string()),
    }
    return pa.table(corpus), pa.table(scores)


def decided(prompts, config=None):
    """decide() on the prompts, as rows by prompt_id."""
    corpus, scores = tables(prompts)
    made = decide(corpus, scores, config or settings_of())
    return {row["prompt_id"]: row for row in made.to_pylist()}


def triaged(prompts, config=None):
    """decide() and select() on the prompts, as a table."""
    config = config or settings_of()
    corpus, scores = tables(prompts)
    return select(decide(corpus, scores, config), config)


def named(role, values, prefix=None):
    """One prompt a value."""
    return [Prompt(f"{prefix or role}-{i}", role, None if v is None else float(v)) for i, v in enumerate(values)]


def crowd(n_audit, n_calibration=99, n_fit=20, seed=0):
    """Harmless audited prompts, calibrators and fit prompts with scores of one law."""
    rng = np.random.default_rng(seed)
    return [
        *named("audit", rng.normal(size=n_audit)),
        *named("calibration", rng.normal(size=n_calibration)),
        *named("fit", [None] * n_fit),
    ]


@st.composite
def audits(draw):
    """Any audit: ties, families, failed rows of several kinds, lost shards, any order.

    At least four calibrators, so that a prompt can be flagged at alpha = 0.3.
    """
    roles = draw(st.lists(st.sampled_from(["audit", "audit", "positive_control", "calibration", "fit"]), max_size=40))
    prompts = named("calibration", [0, 1, 2, 3])
    for i, role in enumerate(roles):
        status = draw(st.sampled_from(["ok", "ok", "ok", "non_finite", "out_of_memory", None]))
        value = float(draw(st.integers(0, 4))) if status == "ok" and role != "fit" else None
        family = draw(st.sampled_from([None, "one", "two"])) if role in ("audit", "positive_control") else None
        prompts.append(Prompt(f"p{i}", role, value, family, status))
    return draw(st.permutations(prompts))
