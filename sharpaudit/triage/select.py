"""Select: what is generated. Flagged prompts, positive controls, band prompts, and a control sample.

Controls are unflagged audited prompts, drawn by strata of p so that the miss rate can be bounded where it matters.
Within a stratum the smallest hashes of (run seed, prompt_id) are drawn: a random sample that depends on no
order and that a larger one contains. `inclusion_probability` is drawn / size of the stratum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status
from sharpaudit.seeds import rank_hash
from sharpaudit.statistics.sampling import allocate
from sharpaudit.tables.schemas import TRIAGE

EDGES = (0.01, 0.05, 0.2, 0.5, 1.0)
LABELS = ("p<=0.01", "0.01<p<=0.05", "0.05<p<=0.2", "0.2<p<=0.5", "0.5<p<=1")


def select(decided: pa.Table, config: AuditConfig) -> pa.Table:
    """The triage table: `decided` with what each prompt is selected for, how many samples, and its stratum."""
    ids = decided["prompt_id"].to_pylist()
    role = decided["role"].to_numpy(zero_copy_only=False)
    ok = np.array(decided["status"].to_pylist(), dtype=object) == Status.OK
    flagged = decided["flagged"].to_numpy(zero_copy_only=False)
    p = decided["p_value"].to_numpy(zero_copy_only=False).astype(np.float64)
    audited = (role == "audit") & ok
    chosen = np.full(len(ids), "none", dtype=object)
    chosen[audited & flagged] = "flagged"
    chosen[(role == "positive_control") & ok] = "positive_control"
    chosen[_smallest(ids, np.flatnonzero(role == "fit"), config.samples.band_prompts, config.seed, "band")] = "band"
    stratum = np.full(len(ids), -1)
    stratum[audited & ~flagged] = np.searchsorted(EDGES, p[audited & ~flagged], side="left")
    probability = np.where(audited & flagged, 1.0, np.nan)
    members = [np.flatnonzero(stratum == i) for i in range(len(EDGES))]
    for rows, drawn in zip(members, allocate(config.triage.controls, [len(m) for m in members]), strict=True):
        chosen[_smallest(ids, rows, drawn, config.seed, "control")] = "control"
        probability[rows] = drawn / len(rows) if len(rows) else np.nan
    samples = {
        "flagged": config.samples.per_flagged,
        "positive_control": config.samples.per_flagged,
        "control": config.samples.per_control,
        "band": config.samples.per_band,
        "none": 0,
    }
    columns = {
        "selected_for": pa.array(chosen, pa.string()),
        "n_samples": pa.array([samples[name] for name in chosen], pa.int32()),
        "stratum": pa.array([LABELS[i] if i >= 0 else None for i in stratum], pa.string()),
        "inclusion_probability": pa.array(probability, from_pandas=True),
    }
    return pa.table({n: columns[n] if n in columns else decided[n] for n in TRIAGE.schema.names}).cast(TRIAGE.schema)


def _smallest(
    ids: list[str], rows: npt.NDArray[np.int64], n: int, seed: int, purpose: str
) -> npt.NDArray[np.int64]:
    """The n of `rows` whose prompts have the smallest hashes."""
    if n >= len(rows):
        return rows
    return np.array(sorted(rows, key=lambda row: rank_hash(seed, purpose, ids[row]))[:n], dtype=np.int64)
