"""Everything the report says, as JSON: computed from the tables by SQL, with intervals and with its sums checked.

What is undefined is null and shown as "undefined"; nothing is invented. Rates carry two-sided 95% Clopper-Pearson
intervals. What the flags missed is estimated and bounded from the control sample (sections/missed.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sharpaudit.report.reading import Entry, one
from sharpaudit.report.sections import decisions, errors, flow, missed, screen
from sharpaudit.report.sections.base import ReportSection
from sharpaudit.report.sections.copies import bands, copies
from sharpaudit.report.sections.findings import findings
from sharpaudit.report.sections.grades import grades
from sharpaudit.tables.query import Connection
from sharpaudit.tables.schemas import RUN_TABLES, Table

VERSION = 6

LIMITS = (
    "A finding is a picture, not a verdict: whether it infringes is a legal question that similarity cannot answer.",
    "No copy means no copy of what the index holds. Training pictures that it does not hold cannot be found.",
    "The prompts were taken as they are. Nobody searched for prompts that extract more.",
    "Each prompt was generated from few random seeds; a copy that appears rarely can be missed.",
    "Thresholds hold for this model, precision, timestep and for prompts of the calibration set's style only.",
    "The descriptor compares whole pictures. Copies of a small region, a style or a template can escape it.",
)


def collect(
    connection: Connection,
    run: Mapping[str, Any],
    more: Sequence[ReportSection] = (),
    tables: Sequence[Table] = RUN_TABLES,
) -> Entry:
    """The facts of a run. more: sections of foreign stages. tables: those that the run has.

    run: what the tables do not hold: name, created, sharpaudit_version, model, settings (the configuration), inputs,
    index, hardware, quarantined (stage, shard, rows, reason of each), command.
    """
    triage = run["settings"]["triage"]
    level = screen.level_of(connection, triage)
    differences = flow.differences(connection, run, tables)
    told = copies(connection, run["settings"]["samples"]["per_prompt"])
    return {
        "version": VERSION,
        "run": dict(run),
        "holding": holding(run["index"].get("holds")),
        "flow": flow.flow(connection, told),
        "reconciles": not differences,
        "differences": differences,
        "tiers": screen.tiers(connection),
        "fit_left_out": screen.left_out(connection),
        "calibration": screen.calibration(connection, triage, level),
        "discoveries": decisions.discoveries(connection, triage),
        "families": decisions.families(connection, triage),
        "styles": decisions.styles(connection),
        "calibration_check": decisions.calibration_check(connection, triage),
        "histogram": screen.histogram(connection, level),
        "borderline": screen.borderline(connection, level),
        "findings": findings(connection),
        "grades": grades(connection),
        "copies": told,
        "controls": missed.controls(connection, told["per_prompt"]),
        "positive_controls": missed.positive_controls(connection),
        "bands": bands(connection),
        "exclusions": errors.exclusions(connection),
        "quarantined": list(run["quarantined"]),
        "noise_floor": one(connection, "SELECT max(noise_floor) FROM fit_unconditional"),
        "truncated": one(connection, "SELECT count(*) FROM corpus WHERE truncated AND role = 'audit'"),
        "indistinguishable": one(connection, "SELECT coalesce(sum(n_prompts), 0)::BIGINT FROM indistinguishable"),
        "limits": list(LIMITS),
        "sections": {section.name: section.facts(connection) for section in more},
    }


def agree(told: Any, made: Any) -> bool:
    """Whether two facts read from JSON are one, numbers with a fraction to nine digits.

    Intervals and means are computed again where a run is verified, and the last bit of a logarithm or of a sum depends
    on the processor and on its C library.
    """
    if isinstance(told, float) and isinstance(made, float):
        return math.isclose(told, made, rel_tol=1e-9)
    if isinstance(told, dict) and isinstance(made, dict):
        return told.keys() == made.keys() and all(agree(told[name], made[name]) for name in told)
    if isinstance(told, list) and isinstance(made, list):
        return len(told) == len(made) and all(map(agree, told, made))
    return type(told) is type(made) and bool(told == made)


def holding(counts: Mapping[str, Any] | None) -> Entry | None:
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
