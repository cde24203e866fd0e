"""Everything the report says, as JSON: computed from the tables by SQL, with intervals and with its sums checked.

What is undefined is null and shown as "undefined"; nothing is invented. Rates carry two-sided 95% Clopper-Pearson
intervals. What the flags missed is estimated and bounded from the control sample (statistics/missed.py). A control that
was drawn and has a picture that was not made or not matched counts as copied in the bound: a failure may depend on the
prompt, so it must not make the bound smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sharpaudit.errors import Status
from sharpaudit.report import decisions, screening
from sharpaudit.report.copies import bands, copies
from sharpaudit.report.reading import Row, one, rows_of
from sharpaudit.statistics.intervals import clopper_pearson
from sharpaudit.statistics.missed import RATES, Drawn, least_recall, missed, seen
from sharpaudit.tables.query import Connection
from sharpaudit.tables.schemas import RUN_TABLES
from sharpaudit.tables.views import view_name

VERSION = 4

LIMITS = (
    "A finding is a picture, not a verdict: whether it infringes is a legal question that similarity cannot answer.",
    "No copy means no copy of what the index holds. Training pictures that it does not hold cannot be found.",
    "The prompts were taken as they are. Nobody searched for prompts that extract more.",
    "Each prompt was generated from few random seeds; a copy that appears rarely can be missed.",
    "Thresholds hold for this model, precision, timestep and for prompts of the calibration set's style only.",
    "The descriptor compares whole pictures. Copies of a small region, a style or a template can escape it.",
)


def collect(connection: Connection, run: Mapping[str, Any]) -> Row:
    """The facts of a run.

    run: what the tables do not hold: name, created, sharpaudit_version, model, settings (the configuration), inputs,
    index, hardware, quarantined (stage, shard, rows, reason of each), command.
    """
    triage = run["settings"]["triage"]
    level = screening.level_of(connection, triage)
    differences, told = _differences(connection, run), copies(connection, run["settings"]["samples"]["per_prompt"])
    return {
        "version": VERSION,
        "run": dict(run),
        "holding": holding(run["index"].get("holds")),
        "flow": _flow(connection, told),
        "reconciles": not differences,
        "differences": differences,
        "tiers": screening.tiers(connection),
        "fit_left_out": screening.left_out(connection),
        "calibration": screening.calibration(connection, triage, level),
        "discoveries": decisions.discoveries(connection, triage),
        "families": decisions.families(connection, triage),
        "styles": decisions.styles(connection),
        "calibration_check": decisions.calibration_check(connection, triage),
        "histogram": screening.histogram(connection, level),
        "borderline": screening.borderline(connection, level),
        "findings": _findings(connection),
        "copies": told,
        "controls": _controls(connection, told["per_prompt"]),
        "positive_controls": _positive_controls(connection),
        "bands": bands(connection),
        "exclusions": _exclusions(connection),
        "quarantined": list(run["quarantined"]),
        "noise_floor": one(connection, "SELECT max(noise_floor) FROM fit_unconditional"),
        "truncated": one(connection, "SELECT count(*) FROM corpus WHERE truncated AND role = 'audit'"),
        "indistinguishable": one(connection, "SELECT coalesce(sum(n_prompts), 0)::BIGINT FROM indistinguishable"),
        "limits": list(LIMITS),
    }


def holding(counts: Mapping[str, Any] | None) -> Row | None:
    """What part of the training set the index holds: references, of how many, the share, and what the others are.

    Of training_size where the index was given one, else of the files of its folder: references, rejected and not looked
    at. None where the index does not say. counts: matches.index.IndexManifest.holding.
    """
    if counts is None:
        return None
    size, passed = counts["training_size"], counts["not_looked_at"]
    n = counts["references"]
    of = size if size is not None else n + counts["rejected"] + sum(passed.values())
    return {
        "references": n,
        "of": of,
        "what": "files" if size is None else "training pictures",
        "share": n / of,
        "rejected": counts["rejected"],
        "duplicates": counts["duplicates"],
        "not_looked_at": dict(sorted(passed.items(), key=lambda kind: (-kind[1], kind[0]))),
    }


def _rate(k: int, n: int) -> Row:
    """k of n with its interval; undefined where n is zero, or where the tables contradict themselves."""
    if n == 0 or k > n:
        return {"n": k, "of": n, "rate": None, "low": None, "high": None}
    interval = clopper_pearson(k, n)
    return {"n": k, "of": n, "rate": k / n, "low": interval.low, "high": interval.high}


def _flow(connection: Connection, told: Row) -> list[Row]:
    """From source rows to copies, for audited prompts. told: `copies`.

    What the flags found and what the controls added stand apart, each of what was compared. A share of the controls has
    no interval: they were not drawn with equal probabilities.
    """
    count = rows_of(
        connection,
        f"""
        SELECT
          (SELECT count(*) FROM origins WHERE source LIKE 'audit:%') AS read,
          (SELECT count(*) FROM origins WHERE source LIKE 'audit:%' AND status = 'ok') AS accepted,
          (SELECT count(*) FROM corpus WHERE role = 'audit') AS distinct_prompts,
          (SELECT count(*) FROM triage WHERE role = 'audit' AND status = 'ok') AS scored,
          (SELECT count(*) FROM triage WHERE role = 'audit' AND flagged) AS flagged,
          (SELECT count(*) FROM triage WHERE role = 'audit' AND status = 'ok' AND {screening.CALIBRATED}) AS calibrated,
          (SELECT count(*) FROM triage WHERE role = 'audit' AND n_samples > 0) AS generated,
          (SELECT count(*) FROM samples JOIN triage USING (prompt_id) WHERE role = 'audit') AS samples,
          (SELECT count(DISTINCT sample_id) FROM matches JOIN triage USING (prompt_id)
           WHERE role = 'audit' AND matches.status = 'ok') AS matched,
          (SELECT count(*) FROM findings) AS copied""",  # noqa: S608 - a constant
    )[0]
    flagged, controls = told["flagged"], told["controls"]
    return [
        {"step": "source rows", "unit": "rows", "n": count["read"]},
        {"step": "accepted", "unit": "rows"} | _rate(count["accepted"], count["read"]),
        {"step": "distinct prompts", "unit": "prompts", "n": count["distinct_prompts"]},
        {"step": "scored", "unit": "prompts"} | _rate(count["scored"], count["distinct_prompts"]),
        {"step": "flagged", "unit": "prompts"} | _rate(count["flagged"], count["calibrated"]),
        {"step": "generated", "unit": "prompts", "n": count["generated"], "samples": count["samples"]},
        {"step": "pictures matched", "unit": "pictures"} | _rate(count["matched"], count["samples"]),
        {"step": "flagged with a copy", "unit": "prompts"} | _rate(flagged["copied"], flagged["compared"]),
        {"step": "controls with a copy", "unit": "prompts"}
        | _rate(controls["copied"], controls["compared"])
        | {"low": None, "high": None},
        {"step": "with a copy in all", "unit": "prompts", "n": count["copied"]},
    ]


def _differences(connection: Connection, run: Mapping[str, Any]) -> list[str]:
    """Every sum that does not agree, in words."""
    lost = dict.fromkeys(("score", "sample", "match"), 0)
    for entry in run["quarantined"]:
        lost[entry["stage"]] = lost.get(entry["stage"], 0) + entry["rows"]
    sums = {
        "distinct prompts named by origins, and rows of corpus": (
            "SELECT count(DISTINCT prompt_id) FROM origins WHERE prompt_id IS NOT NULL",
            "SELECT count(*) FROM corpus",
            0,
        ),
        "prompts of corpus, and of triage": ("SELECT count(*) FROM corpus", "SELECT count(*) FROM triage", 0),
        "prompts of corpus but fit prompts, and scored or set aside": (
            "SELECT count(*) FROM corpus WHERE role <> 'fit'",
            "SELECT count(DISTINCT prompt_id) FROM scores",
            lost["score"],
        ),
        "samples asked for, and made or set aside": (
            "SELECT coalesce(sum(n_samples), 0)::BIGINT FROM triage",
            "SELECT count(*) FROM samples",
            lost["sample"],
        ),
        "samples made, and matched or set aside": (
            "SELECT count(*) FROM samples",
            "SELECT count(DISTINCT sample_id) FROM matches",
            lost["match"],
        ),
        "rows of scores, and prompts times metrics of all tiers": (
            "SELECT count(*) FROM scores",
            "SELECT count(DISTINCT prompt_id) * count(DISTINCT (tier, metric)) FROM scores",
            0,
        ),
    }
    found = []
    for what, (left, right, aside) in sums.items():
        a, b = one(connection, left), one(connection, right) + aside
        if a != b:
            found.append(f"{what}: {a:,} and {b:,}")
    return found + _stray_keys(connection)


def _stray_keys(connection: Connection) -> list[str]:
    """Keys that stand twice, or that the table before does not know: counts alone can agree in spite of them."""
    found = []
    for table in RUN_TABLES:
        name, key = view_name(table), ", ".join(table.key)
        # As many hashes as rows prove that no key stands twice, in a quarter of the memory that the keys would take.
        n = one(connection, f"SELECT count(*) - count(DISTINCT hash({key})) FROM {name}")  # noqa: S608
        if n:
            n = one(connection, f"SELECT count(*) - count(DISTINCT row({key})) FROM {name}")  # noqa: S608
        if n:
            found.append(f"rows of {name} whose key stands there before: {n:,}")
    for name, before in (("corpus", "origins"), ("scores", "corpus"), ("triage", "corpus")):
        n = one(connection, f"SELECT count(*) FROM {name} ANTI JOIN {before} USING (prompt_id)")  # noqa: S608
        if n:
            found.append(f"rows of {name} whose prompt is not in {before}: {n:,}")
    return found


def _findings(connection: Connection) -> Row:
    """All of them, the most similar first; the page shows as many as the configuration says."""
    rows = rows_of(
        connection,
        """
        SELECT f.*, coalesce(c.n_copies, 0) AS source_rows,
               (SELECT list(o.external_id ORDER BY o.source, o.source_row) FROM origins o
                WHERE o.prompt_id = f.prompt_id AND o.external_id IS NOT NULL) AS external_ids
        FROM findings f LEFT JOIN copies c USING (prompt_id)
        ORDER BY best_similarity DESC, prompt_id""",
    )
    return {"total": len(rows), "rows": rows}


_TOLD = """
    WITH examined AS (
        SELECT prompt_id, count(DISTINCT sample_id) AS n FROM matches WHERE status = 'ok' GROUP BY ALL
    ), told AS (
        SELECT t.stratum, t.selected_for, t.p_value, f.prompt_id IS NOT NULL AS copied,
               f.prompt_id IS NULL AND coalesce(e.n, 0) < t.n_samples AS incomplete
        FROM triage t LEFT JOIN findings f USING (prompt_id) LEFT JOIN examined e USING (prompt_id)
        WHERE t.role = 'audit'
    )"""
"""Audited prompts, and whether pictures are missing that might have been copies."""


def _controls(connection: Connection, per_prompt: int) -> Row:
    """The control sample by stratum, and what it bounds: prompts that would copy in at least one of their pictures.

    per_prompt: how many these are. seen: the chance that a prompt which copies at a rate is one of those.
    """
    rows = rows_of(
        connection,
        f"""{_TOLD} SELECT stratum, count(*) AS size, count(*) FILTER (selected_for = 'control') AS drawn,
                count(*) FILTER (selected_for = 'control' AND copied) AS copied,
                count(*) FILTER (selected_for = 'control' AND incomplete) AS not_examined
            FROM told WHERE stratum IS NOT NULL GROUP BY stratum ORDER BY min(p_value)""",  # noqa: S608 - a constant
    )
    told = missed([Drawn(row["size"], row["drawn"], row["copied"], row["not_examined"]) for row in rows])
    for row, high in zip(rows, told.high, strict=True):
        row["missed_high"] = high
    flagged = rows_of(
        connection,
        f"""{_TOLD} SELECT count(*) FILTER (copied) AS copied, count(*) FILTER (incomplete) AS not_examined
            FROM told WHERE selected_for IN ('flagged', 'uncalibrated')""",  # noqa: S608 - a constant
    )[0]
    found, unflagged = flagged["copied"], sum(row["size"] for row in rows)
    # A flagged prompt without all its pictures may copy as well, and was not found to.
    others_high = flagged["not_examined"] + told.total_high
    return {
        "seen": [{"rate": rate, "share": seen(rate, per_prompt)} for rate in RATES],
        "strata": rows,
        "missed_high": told.total_high,
        "missed_estimate": told.estimate,
        "miss_rate": {
            "estimate": told.estimate / unflagged if unflagged and told.estimate is not None else None,
            "high": told.total_high / unflagged if unflagged else None,
        },
        "found": found,
        "recall_low": least_recall(found, others_high),
        "memorised": {
            "low": found + sum(row["copied"] for row in rows),
            "estimate": None if told.estimate is None else found + told.estimate,
            "high": found + others_high,
        },
    }


def _positive_controls(connection: Connection) -> Row:
    counts = rows_of(
        connection,
        """
        SELECT count(*) AS n, count(*) FILTER (flagged) AS flagged, count(*) FILTER (prompt_id IN (
            SELECT s.prompt_id FROM samples s JOIN matches m USING (sample_id) WHERE m.rank = 1 AND m.band = 'copy'
        )) AS copied FROM triage WHERE role = 'positive_control'""",
    )[0]
    return {
        "n": counts["n"],
        "flagged": _rate(counts["flagged"], counts["n"]),
        "copied": _rate(counts["copied"], counts["n"]),
    }


def _exclusions(connection: Connection) -> list[Row]:
    sql = "SELECT stage, table_name, status, n FROM outcomes WHERE status NOT IN ('ok', 'cleared') ORDER BY ALL"
    return [row | {"sentence": Status(row["status"]).describe()} for row in rows_of(connection, sql)]
