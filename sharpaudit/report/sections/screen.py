"""What the report says of the screen: its tiers, what calibrated it, where it flags."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from sharpaudit.report.reading import Entry, one, rows_of
from sharpaudit.statistics.conformal import fpr_interval, rank_at, smallest_p
from sharpaudit.tables.query import Connection
from sharpaudit.triage.calibrators import UNCALIBRATED

BINS = 40
ROUNDING = 1e-4
"""Scores of a network agree to this share on one type of device."""


CALIBRATED = f"calibrated_by IS DISTINCT FROM '{UNCALIBRATED}'"
"""In SQL on triage: a prompt of which rates are claimed, or without a score."""


def level_of(connection: Connection, triage: Mapping[str, Any]) -> float | None:
    """The p at which a prompt is flagged: alpha, or with flag_by = "q" the largest flagged p, null without one."""
    if triage["flag_by"] == "p":
        return float(triage["alpha"])
    sql = f"SELECT max(p_value) FROM triage WHERE role = 'audit' AND flagged AND {CALIBRATED}"  # noqa: S608
    found: float | None = one(connection, sql)
    return found


def _ranked_among(connection: Connection) -> list[int]:
    """How many calibration prompts the calibrated audited ones of each style rank among, where there are any."""
    sql = f"""
        WITH strata AS (
            SELECT calibrated_by AS stratum, count(*) FILTER (role = 'calibration' AND status = 'ok') AS n,
                   count(*) FILTER (role = 'audit') AS audited
            FROM triage WHERE calibrated_by IS NOT NULL AND {CALIBRATED} GROUP BY ALL)
        SELECT n FROM strata WHERE audited > 0 AND n > 0 ORDER BY 1"""  # noqa: S608 - a constant
    return [int(row[0]) for row in connection.sql(sql).fetchall()]


def _calibrating(connection: Connection) -> int:
    return int(one(connection, "SELECT count(*) FROM triage WHERE role = 'calibration' AND status = 'ok'"))


def calibration(connection: Connection, triage: Mapping[str, Any], level: float | None) -> Entry:
    """What the flags rest on. The false-positive rate is of p <= alpha, and undefined without calibration prompts."""
    sizes, n = _ranked_among(connection), _calibrating(connection)
    intervals = [fpr_interval(triage["alpha"], size) for size in sizes]
    line = _flag_line(connection, level)
    return {
        "n": n,
        "flag_by": triage["flag_by"],
        "alpha": triage["alpha"],
        "q": triage["q"],
        "fpr_low": min((interval.low for interval in intervals), default=None),
        "fpr_high": max((interval.high for interval in intervals), default=None),
        "smallest_p": min((smallest_p(size) for size in sizes), default=None),
        "flag_tier": line[0] if line else None,
        "flag_line": line[1] if line else None,
        "fit": one(connection, "SELECT count(*) FROM corpus WHERE role = 'fit'"),
    }


def _flag_line(connection: Connection, level: float | None) -> tuple[int, float] | None:
    """Tier and score of the calibration prompt that must be exceeded for p <= level; null if nothing can be flagged.

    Null as well where strata of style have lines of their own.
    """
    if level is None or _ranked_among(connection) != [_calibrating(connection)]:
        return None
    sql = "SELECT tier, value FROM triage WHERE role = 'calibration' AND status = 'ok' ORDER BY ALL DESC"
    scores = connection.sql(sql).fetchall()
    k = rank_at(level, len(scores))
    return scores[k - 1] if 0 < k <= len(scores) else None


def left_out(connection: Connection) -> int:
    """Fit prompts that look like no other and therefore taught nothing, at the first seed."""
    sql = """
        SELECT coalesce((SELECT count(*) FROM fit_differences WHERE seed_index = 0 AND status = 'ok')
                        - (SELECT max(n_fit) FROM fit_subspace WHERE seed_index = 0), 0)"""
    return int(one(connection, sql))


def tiers(connection: Connection) -> list[Entry]:
    """Of each tier: the audited prompts that entered it, by which threshold, and the network evaluations it cost."""
    return rows_of(
        connection,
        """
        WITH measured AS (
            SELECT tier, metric, any_value(n_seeds) AS n_seeds, sum(evaluations)::BIGINT AS evaluations,
                   count(*) FILTER (role = 'audit' AND s.status NOT IN ('cleared', 'no_score')) AS n
            FROM scores s JOIN corpus USING (prompt_id) GROUP BY tier, metric
        ), entered AS (
            SELECT tier, any_value(n_seeds) AS n_seeds, string_agg(metric, ', ' ORDER BY metric) AS metrics,
                   max(n) AS n, sum(evaluations)::BIGINT AS evaluations
            FROM measured GROUP BY tier
        )
        SELECT e.*, t.metric AS gate, t.quantile, t.threshold
        FROM entered e LEFT JOIN fit_thresholds t USING (tier) ORDER BY tier""",
    )


def borderline(connection: Connection, level: float | None) -> list[str]:
    """Audited prompts whose flag rounding on another machine may turn.

    Those within one calibration rank of the level, and those whose score is so near a tier's threshold that they may
    go on there.
    """
    if level is None:
        return []
    rank = 1 / (min(_ranked_among(connection), default=0) + 1) + 1e-9
    sql = f"""
        SELECT prompt_id FROM triage WHERE role = 'audit' AND abs(p_value - {level}) <= {rank}
        UNION
        SELECT s.prompt_id FROM scores s JOIN corpus c USING (prompt_id)
        JOIN fit_thresholds t ON t.tier = s.tier + 1 AND t.metric = s.metric
        WHERE c.role = 'audit' AND abs(s.value - t.threshold) <= {ROUNDING} * t.threshold
        ORDER BY prompt_id"""  # noqa: S608
    return [row[0] for row in connection.sql(sql).fetchall()]


def histogram(connection: Connection, level: float | None) -> Entry | None:
    """Counts of the first tier's deciding score on a logarithmic axis, which has no place for zero; null without any.

    The line is where prompts are flagged or, before another tier, where they go on.
    """
    gates = rows_of(connection, "SELECT metric, threshold FROM fit_thresholds WHERE tier = 2")
    metric = gates[0]["metric"] if gates else one(connection, "SELECT any_value(metric) FROM triage WHERE tier = 1")
    # As arrays: there may be millions of scores.
    scored = connection.sql(
        "SELECT role = 'audit' AS audited, value FROM scores JOIN corpus USING (prompt_id) WHERE tier = 1 "
        "AND metric = $metric AND value IS NOT NULL AND role IN ('audit', 'calibration')",
        params={"metric": metric},
    ).fetchnumpy()
    audited, value = np.asarray(scored["audited"], bool), np.asarray(scored["value"], float)
    positive = value > 0
    if not positive.any():
        return None
    values = {"audit": value[positive & audited], "calibration": value[positive & ~audited]}
    low, high = float(value[positive].min()), float(value[positive].max())
    edges = bins(low, high if high > low else low * 1.01)
    counts = {role: np.histogram(v, edges)[0].tolist() for role, v in values.items()}
    flag = _flag_line(connection, level)
    flagged = {"says": "flagged above", "at": flag[1] if flag else None}
    line = {"says": "go on above", "at": gates[0]["threshold"]} if gates else flagged
    return {"edges": edges, "metric": metric, "line": line, "not_positive": int((~positive).sum())} | counts


def bins(low: float, high: float) -> list[float]:
    """Edges of BINS bins of one ratio, the first and the last exactly these.

    In decimal numbers, whose powers are the same on every machine: those of numpy and of the C library differ in the
    last bit by what the processor has, and a score near an edge would be counted beside it where the run is verified.
    """
    ratio = Decimal(high) / Decimal(low)
    return [low, *(float(Decimal(low) * ratio ** (Decimal(i) / BINS)) for i in range(1, BINS)), high]
