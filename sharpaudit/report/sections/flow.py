"""From source rows to copies, with every sum checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sharpaudit.report.reading import Entry, one, rate, rows_of
from sharpaudit.report.sections import screen
from sharpaudit.tables.query import Connection
from sharpaudit.tables.schemas import Table
from sharpaudit.tables.views import identifier, view_name


def flow(connection: Connection, told: Entry) -> list[Entry]:
    """From source rows to copies, for audited prompts. told: `copies`.

    What the flags found and what the controls added stand apart, each of what was compared. A share of the controls has
    no interval: they were not drawn with equal probabilities.
    """
    count = counts(connection)
    flagged, controls = told["flagged"], told["controls"]
    return [
        {"step": "source rows", "unit": "rows", "n": count["read"]},
        {"step": "accepted", "unit": "rows"} | rate(count["accepted"], count["read"]),
        {"step": "distinct prompts", "unit": "prompts", "n": count["distinct_prompts"]},
        {"step": "scored", "unit": "prompts"} | rate(count["scored"], count["distinct_prompts"]),
        {"step": "flagged", "unit": "prompts"} | rate(count["flagged"], count["calibrated"]),
        {"step": "generated", "unit": "prompts", "n": count["generated"], "samples": count["samples"]},
        {"step": "pictures matched", "unit": "pictures"} | rate(count["matched"], count["samples"]),
        {"step": "flagged with a copy", "unit": "prompts"} | rate(flagged["copied"], flagged["compared"]),
        {"step": "controls with a copy", "unit": "prompts"}
        | rate(controls["copied"], controls["compared"])
        | {"low": None, "high": None},
        {"step": "with a copy in all", "unit": "prompts", "n": count["copied"]},
    ]


def counts(connection: Connection) -> Entry:
    """How many rows, prompts and pictures of the audited came how far."""
    return rows_of(
        connection,
        f"""
        SELECT
          (SELECT count(*) FROM origins WHERE source LIKE 'audit:%') AS read,
          (SELECT count(*) FROM origins WHERE source LIKE 'audit:%' AND status = 'ok') AS accepted,
          (SELECT count(*) FROM corpus WHERE role = 'audit') AS distinct_prompts,
          (SELECT count(*) FROM triage WHERE role = 'audit' AND status = 'ok') AS scored,
          (SELECT count(*) FROM triage WHERE role = 'audit' AND flagged) AS flagged,
          (SELECT count(*) FROM triage WHERE role = 'audit' AND status = 'ok' AND {screen.CALIBRATED}) AS calibrated,
          (SELECT count(*) FROM triage WHERE role = 'audit' AND n_samples > 0) AS generated,
          (SELECT count(*) FROM samples JOIN triage USING (prompt_id) WHERE role = 'audit') AS samples,
          (SELECT count(DISTINCT sample_id) FROM matches JOIN triage USING (prompt_id)
           WHERE role = 'audit' AND matches.status = 'ok') AS matched,
          (SELECT count(*) FROM findings) AS copied""",  # noqa: S608 - a constant
    )[0]


def differences(connection: Connection, run: Mapping[str, Any], tables: Sequence[Table]) -> list[str]:
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
    return found + _stray_keys(connection, tables)


def _stray_keys(connection: Connection, tables: Sequence[Table]) -> list[str]:
    """Keys that stand twice, or that the table before does not know: counts alone can agree in spite of them."""
    found = []
    for table in tables:
        name, key = identifier(view_name(table)), ", ".join(map(identifier, table.key))
        # As many hashes as rows prove that no key stands twice, in a quarter of the memory that the keys would take.
        n = one(connection, f"SELECT count(*) - count(DISTINCT hash({key})) FROM {name}")  # noqa: S608
        if n:
            n = one(connection, f"SELECT count(*) - count(DISTINCT row({key})) FROM {name}")  # noqa: S608
        if n:
            found.append(f"rows of {view_name(table)} whose key stands there before: {n:,}")
    for name, before in (("corpus", "origins"), ("scores", "corpus"), ("triage", "corpus")):
        n = one(connection, f"SELECT count(*) FROM {name} ANTI JOIN {before} USING (prompt_id)")  # noqa: S608
        if n:
            found.append(f"rows of {name} whose prompt is not in {before}: {n:,}")
    return found
