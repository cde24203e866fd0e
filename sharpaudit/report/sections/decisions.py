"""What the report says of the decisions: discoveries, strata of style, memorised prompts in the calibration set.

Shapes: N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sharpaudit.config import TriageConfig
from sharpaudit.report.reading import Entry, one, rows_of
from sharpaudit.report.sections.screen import CALIBRATED
from sharpaudit.statistics.conformal import TOLERANCE, lexicographic, smallest_p
from sharpaudit.statistics.fdr import HALF, PREVALENCES, calibration_needed, penalty, share_of_harmless
from sharpaudit.tables.query import Connection
from sharpaudit.triage.calibrators import ALL, UNCALIBRATED, ranked
from sharpaudit.triage.decide import flags


def discoveries(connection: Connection, triage: Mapping[str, Any]) -> Entry:
    """What can be said of the false-discovery rate at triage.q: the prompts and families with q at or below it.

    Without any there is a ranked list and no claim: `least` families would have had to reach the smallest p.
    """
    # Counts alone leave DuckDB: there may be millions of families.
    counts = rows_of(
        connection,
        f"""
        WITH members AS (
            SELECT family_id, p_value, q_value, row_number() OVER (PARTITION BY family_id ORDER BY p_value) AS place
            FROM triage JOIN corpus USING (prompt_id)
            WHERE triage.role = 'audit' AND p_value IS NOT NULL AND {CALIBRATED}
        ), families AS (
            SELECT count(*) AS prompts, least(1, count(*) * min(p_value / place)) AS p, min(q_value) AS q
            FROM members GROUP BY family_id
        )
        SELECT count(*) AS m, count(*) FILTER (p > {HALF}) AS above,
               coalesce(sum(prompts) FILTER (q <= {triage["q"] + TOLERANCE}), 0)::BIGINT AS prompts,
               count(*) FILTER (q <= {triage["q"] + TOLERANCE}) AS claimed
        FROM families""",  # noqa: S608 - numbers alone
    )[0]
    n = int(one(connection, "SELECT count(*) FROM triage WHERE role = 'calibration' AND status = 'ok'"))
    m, procedure = counts["m"], triage["procedure"]
    excess = penalty(m, procedure)
    return {
        "q": triage["q"],
        "procedure": procedure,
        "families": m,
        "prompts": counts["prompts"],
        "families_claimed": counts["claimed"],
        "least": math.ceil(m * excess * smallest_p(n) / triage["q"]) if n else None,
        "harmless_share": share_of_harmless(counts["above"], m) if m else None,
        "needed": [
            {"prevalence": share, "calibration": calibration_needed(triage["q"], share, excess)}
            for share in PREVALENCES
        ],
    }


def families(connection: Connection, triage: Mapping[str, Any]) -> Entry:
    """Of calibrated audited prompts with a p: how many, their families, and the flags counted by family.

    share: the sum over families of the share of their prompts that is flagged. expected: what p <= alpha makes of it
    at most, on average, were all of them harmless; null with flag_by = "q". largest: prompts of the largest family.
    """
    found = rows_of(
        connection,
        f"""
        WITH families AS (
            SELECT count(*) AS prompts, count(*) FILTER (flagged) AS flagged FROM triage JOIN corpus USING (prompt_id)
            WHERE triage.role = 'audit' AND p_value IS NOT NULL AND {CALIBRATED} GROUP BY family_id
        )
        SELECT count(*) AS families, coalesce(sum(prompts), 0)::BIGINT AS prompts, coalesce(max(prompts), 0) AS largest,
               coalesce(sum(flagged), 0)::BIGINT AS flagged, count(*) FILTER (flagged > 0) AS with_flag,
               coalesce(sum(flagged / prompts), 0) AS share
        FROM families""",  # noqa: S608 - a constant
    )[0]
    by_p = triage["flag_by"] == "p"
    return found | {"expected": triage["alpha"] * found["families"] if by_p else None}


def styles(connection: Connection) -> list[Entry]:
    """Of each stratum of style: its audited and its calibration prompts; empty where no style was named.

    apart: uncalibrated prompts that rank as high as flagged ones.
    """
    if not one(connection, "SELECT count(style) FROM corpus"):
        return []
    rows = rows_of(
        connection,
        """
        SELECT calibrated_by AS stratum, count(*) FILTER (t.role = 'audit') AS audited,
               count(*) FILTER (t.role = 'audit' AND t.flagged) AS flagged,
               count(*) FILTER (t.selected_for = 'uncalibrated') AS apart,
               count(*) FILTER (t.role = 'calibration') AS calibrating,
               list(DISTINCT coalesce(c.style, '') ORDER BY coalesce(c.style, '')) AS styles
        FROM triage t JOIN corpus c USING (prompt_id) WHERE calibrated_by IS NOT NULL GROUP BY ALL ORDER BY ALL""",
    )
    everyone = sum(row["calibrating"] for row in rows)
    for row in rows:
        row["ranked_among"] = everyone if row["stratum"] in (ALL, UNCALIBRATED) else row["calibrating"]
    return rows


def calibration_check(connection: Connection, triage: Mapping[str, Any]) -> Entry:
    """Calibration prompts at or above the line that were generated: how many copy, and what p is without those.

    flagged_without: audited prompts that would be flagged were the copying ones excluded, and p_without: their p then,
    by prompt. Nothing is changed by that.
    """
    checked = rows_of(
        connection,
        """
        SELECT t.prompt_id, coalesce(bool_or(m.band = 'copy'), false) AS copied
        FROM triage t LEFT JOIN samples s USING (prompt_id)
        LEFT JOIN judged m ON m.sample_id = s.sample_id
        WHERE t.selected_for = 'calibration_check' GROUP BY ALL ORDER BY ALL""",
    )
    copied = [row["prompt_id"] for row in checked if row["copied"]]
    flagged = one(connection, "SELECT count(*) FROM triage WHERE role = 'audit' AND flagged")
    p_without = _flagged_without(connection, copied, triage) if copied else {}
    without = len(p_without) if copied else flagged
    excluded = one(connection, "SELECT count(*) FROM triage WHERE status = 'excluded'")
    return {
        "n": len(checked),
        "copied": copied,
        "flagged": flagged,
        "flagged_without": without,
        "p_without": p_without,
        "excluded": excluded,
    }


def _flagged_without(connection: Connection, out: list[str], triage: Mapping[str, Any]) -> dict[str, float]:
    """p of each audited prompt that is flagged once the calibration prompts `out` calibrate nothing."""
    found = connection.sql(
        """
        SELECT t.prompt_id, t.tier::DOUBLE AS tier, t.value, t.calibrated_by, t.role = 'audit' AS audited,
               t.role = 'calibration' AND NOT list_contains($out, t.prompt_id) AS calibrates,
               dense_rank() OVER (ORDER BY c.family_id) AS family
        FROM triage t JOIN corpus c USING (prompt_id)
        WHERE t.calibrated_by IS NOT NULL AND t.role IN ('audit', 'calibration')""",
        params={"out": out},
    ).fetchnumpy()
    columns = {name: np.asarray(values) for name, values in found.items()}
    strata_N = columns["calibrated_by"].astype(object)
    p_N = ranked(lexicographic(columns["tier"], columns["value"]), strata_N, columns["calibrates"])
    claimed_N = columns["audited"] & (strata_N != UNCALIBRATED)
    rule = TriageConfig(**{name: triage[name] for name in ("flag_by", "alpha", "q", "procedure")})
    flagged_N = claimed_N & flags(p_N, columns["family"], claimed_N, rule)[1]
    ids_N = columns["prompt_id"].astype(object)
    return dict(sorted(zip(ids_N[flagged_N].tolist(), p_N[flagged_N].tolist(), strict=True)))
