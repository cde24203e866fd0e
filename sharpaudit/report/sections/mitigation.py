"""What suppresses the findings: every method that was tried, over all findings and one by one."""

from __future__ import annotations

from importlib.resources import files

from sharpaudit.report.reading import Entry, rate, rows_of
from sharpaudit.report.sections.base import ReportSection
from sharpaudit.statistics.intervals import upper_bound
from sharpaudit.tables.query import Connection
from sharpaudit.tables.views import UNMITIGATED

OUTCOMES = ("suppressed", "weakened", "failed", "not reached", "incomplete", "not possible")


def mitigation(connection: Connection) -> Entry:
    """methods: of each, findings by outcome, the share that it suppresses, and over findings the medians of the
    evaluations of a picture, of how like pictures stayed to those without it, of similarity, and of alignment with the
    prompt where that was asked. findings: the most similar first, each with a picture without a method, and the same
    noise by each. bound: what none of so many copies leaves possible."""
    asked = rows_of(connection, "SELECT any_value(n_asked) AS n FROM mitigated")[0]["n"]
    return {
        "n_asked": asked,
        "bound": None if asked is None else upper_bound(0, asked, 0.95),
        "methods": _methods(connection),
        "findings": _findings(connection),
    }


def _methods(connection: Connection) -> list[Entry]:
    counts = ", ".join(f"count(*) FILTER (outcome = '{name}') AS \"{name}\"" for name in OUTCOMES)
    rows = rows_of(
        connection,
        f"""
        SELECT method, count(*) AS n, median(evaluations) AS evaluations, median(before_evaluations) AS without,
               median(like_before) AS like_before, median(similarity) AS similarity,
               median(before_similarity) AS before_similarity, median(alignment) AS alignment,
               median(before_alignment) AS before_alignment, {counts}
        FROM mitigated GROUP BY method ORDER BY "suppressed" DESC, "weakened" DESC, method""",  # noqa: S608
    )
    return [row | {"share": rate(row["suppressed"], row["n"])} for row in rows]


def _findings(connection: Connection) -> list[Entry]:
    """shown: of each finding the picture without a method that is the best evidence; pictures of methods are of its
    noise, where one was drawn."""
    before = rows_of(
        connection,
        f"""
        SELECT m.prompt_id, c.prompt, m.seed_index, m.image_path, m.image_sha256, m.thumbnail_path, m.reference_id,
               m.similarity
        FROM (SELECT *, row_number() OVER (PARTITION BY prompt_id
                                           ORDER BY band = 'copy' DESC NULLS LAST, similarity DESC NULLS LAST,
                                                    seed_index) AS place
              FROM mitigation WHERE method = '{UNMITIGATED}') m JOIN corpus c USING (prompt_id)
        WHERE place = 1 ORDER BY m.similarity DESC NULLS LAST, m.prompt_id""",  # noqa: S608 - a constant
    )
    tried: dict[str, list[Entry]] = {}
    for row in rows_of(
        connection,
        """
        SELECT t.*, m.image_path, m.seed_index
        FROM mitigated t LEFT JOIN mitigation m USING (prompt_id, method, strength)
        ORDER BY t.prompt_id, t.method, m.seed_index""",
    ):
        tried.setdefault(row["prompt_id"], []).append(row)
    return [row | {"methods": _shown(tried.get(row["prompt_id"], []), row["seed_index"])} for row in before]


def _shown(rows: list[Entry], seed_index: int) -> list[Entry]:
    """One row a method, with its picture from that noise."""
    found: dict[str, Entry] = {}
    for row in rows:
        held = found.setdefault(row["method"], row | {"image_path": None})
        if row["seed_index"] == seed_index:
            held["image_path"] = row["image_path"]
    return [{name: value for name, value in row.items() if name != "seed_index"} for row in found.values()]


MITIGATION_SECTION = ReportSection(
    "mitigate",
    "What suppresses the findings",
    mitigation,
    (files(__package__) / "mitigation.html").read_text(encoding="utf-8"),
)
