"""Select: what is generated. Flagged prompts, uncalibrated ones that rank as high, positive controls, band prompts,
controls, and calibration checks.

Controls are unflagged audited prompts, drawn by strata of p so that the miss rate can be bounded where it matters.
Within a stratum the smallest hashes of (run seed, prompt_id) are drawn: a random sample that depends on no
order and that a larger one contains. `inclusion_probability` is drawn / size of the stratum, 1 for a flagged prompt and
an uncalibrated one that ranks as high; it and `stratum` are null for whatever cannot be drawn, and neither of the two
belongs to a stratum. The bound rests on the draw alone, so uncalibrated prompts that rank lower may be drawn.

Every selected prompt gets `samples.per_prompt` pictures: that a control, or a harmless prompt of the band, gave no copy
says of a flagged prompt what it is to say only where both had as many chances. Band prompts are of different families,
since the bound on their false matches takes them as independent.
"""

from __future__ import annotations

import heapq

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
    """The triage table: what `decide` gave, with each prompt's purpose, number of samples, and stratum."""
    ids = decided["prompt_id"].to_pylist()
    role = decided["role"].to_numpy()
    ok = decided["status"].to_numpy() == Status.OK
    flagged, apart = decided["flagged"].to_numpy(), decided["apart"].to_numpy(zero_copy_only=False)
    p = decided["p_value"].to_numpy()
    certain = (role == "audit") & (flagged | apart)
    drawable = (role == "audit") & ~certain & ~np.isnan(p)
    stratum = np.where(drawable, np.searchsorted(EDGES, p, side="left"), -1)
    controls, probability = _controls(ids, stratum, config)
    chosen = np.full(len(ids), "none", dtype=object)
    chosen[(role == "audit") & flagged] = "flagged"
    chosen[apart] = "uncalibrated"
    chosen[controls] = "control"
    chosen[(role == "positive_control") & ok] = "positive_control"
    chosen[decided["at_line"].to_numpy(zero_copy_only=False)] = "calibration_check"
    chosen[_band(ids, decided["family_id"].to_pylist(), np.flatnonzero(role == "fit"), config)] = "band"
    columns = {
        "selected_for": pa.array(chosen, pa.string()),
        "n_samples": pa.array(np.where(chosen == "none", 0, config.samples.per_prompt), pa.int32()),
        # The label of stratum -1 is the last one: none.
        "stratum": pa.array(np.array([*LABELS, None], dtype=object)[stratum], pa.string()),
        "inclusion_probability": pa.array(np.where(certain, 1.0, probability), from_pandas=True),
    }
    return pa.table({n: columns[n] if n in columns else decided[n] for n in TRIAGE.schema.names}).cast(TRIAGE.schema)


def _controls(
    ids: list[str], stratum: npt.NDArray[np.int64], config: AuditConfig
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The rows drawn, and every row's probability of being drawn (NaN outside the strata)."""
    probability = np.full(len(ids), np.nan)
    members = [np.flatnonzero(stratum == i) for i in range(len(EDGES))]
    drawn = [np.empty(0, dtype=np.int64)]
    for rows, n in zip(members, allocate(config.triage.controls, [len(m) for m in members]), strict=True):
        drawn.append(_smallest(ids, rows, n, config.seed, "control"))
        probability[rows] = n / max(1, len(rows))
    return np.concatenate(drawn), probability


def _band(
    ids: list[str], families: list[str], rows: npt.NDArray[np.int64], config: AuditConfig
) -> npt.NDArray[np.int64]:
    """The fit prompts that set the bands: the smallest hashes, one of each family."""
    found: dict[str, int] = {}
    for row in _smallest(ids, rows, len(rows), config.seed, "band").tolist():
        found.setdefault(families[row], row)
        if len(found) == config.samples.band_prompts:
            break
    return np.array(list(found.values()), dtype=np.int64)


def _smallest(ids: list[str], rows: npt.NDArray[np.int64], n: int, seed: int, purpose: str) -> npt.NDArray[np.int64]:
    """The n of `rows` whose prompts have the smallest hashes."""
    candidates: list[int] = rows.tolist()
    drawn = heapq.nsmallest(n, candidates, key=lambda row: rank_hash(seed, purpose, ids[row]))
    return np.array(drawn, dtype=np.int64)
