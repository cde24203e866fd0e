"""Decide: a score against the calibration prompts gives p, families give q, and a threshold on one of them a flag.

A score is the last tier reached and the deciding metric there, compared in this order; larger means more memorised. p
is given to audited prompts and positive controls, q to calibrated audited prompts only: controls are known to be
memorised and must not feed the discovery rate, so with flag_by = "q" they are still flagged by p. A prompt without a
finite score has no p, no q and no flag, and calibrates nothing.

The p of an uncalibrated prompt (`triage.calibrators`) is its place in an order, and no rate is known of it. Such a
prompt is never flagged: at p <= alpha it is `apart`, to be generated as flagged prompts are and counted by itself.

Flags by p are per prompt, whatever its family does: a memorised prompt is found among harmless near-duplicates, and a
large family needs no smaller p. A family calibrates by one member drawn at random, so what holds at alpha is the rate
of a random prompt of a random harmless family, which is the mean over families of the share of their prompts that is
flagged; not the share of all harmless prompts, to which a family of twenty that move together adds twenty at once
(subsampling once from each group: Dunn, Wasserman and Ramdas, JASA 2023).

Memorised prompts may hide among the calibration prompts: those at or above the line, where an audited prompt would be
flagged, are marked to be looked at. All calibrate nevertheless, which can only make a p larger; acting on what is found
is a decision, `triage.exclude_calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharpaudit.config import AuditConfig, TriageConfig
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.statistics.conformal import at_most, least_calibration, lexicographic
from sharpaudit.statistics.fdr import family_q_values
from sharpaudit.triage.calibrators import UNCALIBRATED, among_themselves, ranked, strata

DECIDED = ("audit", "positive_control")


def decide(corpus: pa.Table, scores: pa.Table, config: AuditConfig) -> pa.Table:
    """One row a prompt of `corpus`, in its order, with what `select` needs besides: `at_line`, `apart`, `family_id`.

    corpus: prompt_id, role, family_id, style. scores: prompt_id, tier, metric, value, status, reason of the deciding
    metric at the last tier that the prompt reached; a prompt that should have a score and has no row was in a
    quarantined shard, and fit prompts have none. Raises UserError without a calibration score and for an excluded
    prompt that calibrates nothing, ValueError where a prompt has two scores.
    """
    outcome = _excluding(corpus, _outcomes(corpus, scores), config.triage.exclude_calibration)
    role = corpus["role"].to_numpy()
    score = lexicographic(outcome["tier"].to_numpy(zero_copy_only=False), outcome["value"].to_numpy())
    score[outcome["status"].to_numpy() == Status.EXCLUDED] = np.nan
    scored = ~np.isnan(score)
    calibrates = _calibrates((role == "calibration") & scored)
    decided = np.isin(role, DECIDED) & scored
    needed = least_calibration(config.triage.alpha)
    stratum = strata(corpus["style"].to_pylist(), role == "audit", calibrates, needed)
    ranks = ranked(score, stratum, calibrates)
    apart = decided & (role == "audit") & (stratum == UNCALIBRATED)
    claimed = decided & (role == "audit") & ~apart
    p = np.where(decided, ranks, np.nan)
    q, chosen = flags(p, corpus["family_id"].to_numpy(), claimed, config.triage)
    columns = {
        "prompt_id": corpus["prompt_id"],
        "role": corpus["role"],
        "family_id": corpus["family_id"],
        "tier": outcome["tier"],
        "metric": outcome["metric"],
        "value": outcome["value"],
        "p_value": pa.array(p, from_pandas=True),
        "q_value": pa.array(q, from_pandas=True),
        "calibrated_by": pa.array(stratum, pa.string(), mask=~(decided | calibrates)),
        "flagged": pa.array(chosen & ~apart),
        "apart": pa.array(chosen & apart),
        "at_line": pa.array(_at_line(among_themselves(ranks, stratum, calibrates), p[claimed & chosen], config.triage)),
        "status": outcome["status"],
        "reason": outcome["reason"],
    }
    return pa.table(columns)


def _at_line(
    ranks: npt.NDArray[np.float64], flagged_p: npt.NDArray[np.float64], triage: TriageConfig
) -> npt.NDArray[np.bool_]:
    """Calibration prompts that stand where prompts are flagged. ranks: of them among themselves."""
    line = triage.alpha if triage.flag_by == "p" else flagged_p.max(initial=0.0)
    return at_most(ranks, line)


def flags(
    p: npt.NDArray[np.float64], families: npt.NDArray[Any], claimed: npt.NDArray[np.bool_], triage: TriageConfig
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """q and flag of each prompt, (N,) each: the rule of flags, for the table and for whoever asks what would be.

    claimed: calibrated audited prompts, the hypotheses of q; the others have none and are flagged by p. NaN compares
    false, so a failed row is never flagged.
    """
    q = np.full(len(p), np.nan)
    q[claimed] = family_q_values(p[claimed], families[claimed], triage.procedure)
    by_p = at_most(p, triage.alpha)
    return q, np.where(claimed, at_most(q, triage.q), by_p) if triage.flag_by == "q" else by_p


def _calibrates(rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if not rows.any():
        raise UserError(
            "no calibration prompt has a score, so no p-value can be given; check [calibration] and the model"
        )
    return rows


def _excluding(corpus: pa.Table, outcome: pa.Table, excluded: Sequence[str]) -> pa.Table:
    """`outcome` with the status of calibration prompts that shall not calibrate."""
    if not excluded:
        return outcome
    calibrating = corpus.filter(pc.equal(corpus["role"], "calibration"))["prompt_id"]
    strange = sorted(set(excluded) - set(calibrating.to_pylist()))
    if strange:
        raise UserError(
            f'triage.exclude_calibration: "{printable(strange[0])}" is the id of no calibration prompt of this run; '
            "those worth a look have selected_for = calibration_check in its triage table"
        )
    out = pc.is_in(corpus["prompt_id"], value_set=pa.array(excluded, pa.string()))
    told = {"status": str(Status.EXCLUDED), "reason": Status.EXCLUDED.describe()}
    for name, value in told.items():
        changed = pc.if_else(out, pa.scalar(value), outcome[name])
        outcome = outcome.set_column(outcome.column_names.index(name), name, changed)
    return outcome


def _outcomes(corpus: pa.Table, scores: pa.Table) -> pa.Table:
    """tier, metric, value (null unless there is a finite score), status and reason of each prompt of `corpus`."""
    if pc.count_distinct(scores["prompt_id"]).as_py() != scores.num_rows:
        raise ValueError("a prompt has two scores of the deciding metric")
    row = pc.index_in(corpus["prompt_id"], value_set=scores["prompt_id"])
    found = scores.select(["tier", "metric", "value", "status", "reason"]).take(row)
    fit = pc.equal(corpus["role"], "fit")
    claimed = pc.fill_null(pc.equal(found["status"], Status.OK), False)
    finite = pc.fill_null(pc.is_finite(found["value"]), False)
    usable = pc.and_not(pc.and_(claimed, finite), fit)
    cases = pc.make_struct(fit, pc.is_null(row), pc.and_not(claimed, finite))
    verdicts = (Status.OK, Status.QUARANTINED, Status.NON_FINITE)
    status = [pa.scalar(str(verdict)) for verdict in verdicts]
    reason = [pa.scalar(v.describe() if v.is_rejection else None, pa.string()) for v in verdicts]
    return pa.table(
        {
            "tier": pc.if_else(fit, pa.scalar(None, pa.int32()), found["tier"]),
            "metric": pc.if_else(fit, pa.scalar(None, pa.string()), found["metric"]),
            "value": pc.if_else(usable, found["value"], pa.scalar(None, pa.float64())),
            "status": pc.case_when(cases, *status, found["status"]),
            "reason": pc.case_when(cases, *reason, found["reason"]),
        }
    )
