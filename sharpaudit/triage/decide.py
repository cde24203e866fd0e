"""Decide: a score against the calibration prompts gives p, families give q, and a threshold on one of them a flag.

Larger scores mean more memorised. p is given to audited prompts and positive controls, q to audited prompts
only: controls are known to be memorised and must not feed the discovery rate. With flag_by = "q" a positive control is
therefore still flagged by p.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status, UserError
from sharpaudit.statistics.conformal import TOLERANCE, p_values
from sharpaudit.statistics.fdr import family_q_values

DECIDED = ("audit", "positive_control")


def decide(corpus: pa.Table, scores: pa.Table, *, metric: str, tier: int, config: AuditConfig) -> pa.Table:
    """One row a prompt of `corpus`, in its order.

    corpus: prompt_id, role, family_id. scores: prompt_id, value, status, reason of the deciding metric; a prompt
    that should have a score and has no row was in a quarantined shard. Raises UserError without calibration scores.
    """
    joined = _outcomes(corpus, scores)
    role = joined["role"].to_numpy(zero_copy_only=False)
    ok = np.array(joined["status"].to_pylist(), dtype=object) == Status.OK
    value = joined["value"].to_numpy(zero_copy_only=False).astype(np.float64)
    decided = np.isin(role, DECIDED) & ok
    p = np.full(len(value), np.nan)
    p[decided] = p_values(value[decided], _calibration(value[(role == "calibration") & ok]))
    audited = decided & (role == "audit")
    q = np.full(len(value), np.nan)
    q[audited] = family_q_values(p[audited], joined["family_id"].to_numpy(zero_copy_only=False)[audited])
    scored = pa.array(role != "fit")
    columns = {
        "prompt_id": joined["prompt_id"],
        "role": joined["role"],
        "tier": pa.array([tier if known.as_py() else None for known in scored], pa.int32()),
        "metric": pa.array([metric if known.as_py() else None for known in scored], pa.string()),
        "value": joined["value"],
        "p_value": pa.array(p, from_pandas=True),
        "q_value": pa.array(q, from_pandas=True),
        "flagged": pa.array(_flags(p, q, audited, config)),
        "status": joined["status"],
        "reason": joined["reason"],
    }
    return pa.table(columns)


def _flags(
    p: npt.NDArray[np.float64], q: npt.NDArray[np.float64], audited: npt.NDArray[np.bool_], config: AuditConfig
) -> npt.NDArray[np.bool_]:
    by_p = np.nan_to_num(p, nan=2.0) <= config.triage.alpha + TOLERANCE
    if config.triage.flag_by == "p":
        return by_p
    return np.where(audited, np.nan_to_num(q, nan=2.0) <= config.triage.q + TOLERANCE, by_p)


def _calibration(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not len(values):
        raise UserError("no calibration prompt has a score, so no p-value can be given; check [calibration] and the model")
    return values


def _outcomes(corpus: pa.Table, scores: pa.Table) -> pa.Table:
    """`corpus` with value, status and reason of each prompt; a fit prompt is ok without a value."""
    known = dict(
        zip(
            scores["prompt_id"].to_pylist(),
            zip(scores["value"].to_pylist(), scores["status"].to_pylist(), scores["reason"].to_pylist(), strict=True),
            strict=True,
        )
    )
    lost = (None, Status.QUARANTINED, Status.QUARANTINED.describe())
    rows = zip(corpus["prompt_id"].to_pylist(), corpus["role"].to_pylist(), strict=True)
    outcomes = [(None, Status.OK, None) if role == "fit" else known.get(name, lost) for name, role in rows]
    value, status, reason = zip(*outcomes, strict=True) if outcomes else ((), (), ())
    return (
        corpus.append_column("value", pa.array(value, pa.float64()))
        .append_column("status", pa.array([str(s) for s in status], pa.string()))
        .append_column("reason", pa.array(reason, pa.string()))
    )
