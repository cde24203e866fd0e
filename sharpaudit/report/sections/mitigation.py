"""What suppresses the findings: every method that was tried, over all findings and one by one."""

from __future__ import annotations

from importlib.resources import files

from sharpaudit.mitigation.base import MOST_STRENGTHS
from sharpaudit.report.reading import Entry, rate, rows_of
from sharpaudit.report.sections.base import ReportSection
from sharpaudit.statistics.intervals import upper_bound
from sharpaudit.tables.query import Connection
from sharpaudit.tables.views import UNMITIGATED

OUTCOMES = ("suppressed", "weakened", "failed", "not reached")
UNTOLD = ("incomplete", "not possible", "no copy before")
"""Of which nothing is told of the method."""


def mitigation(connection: Connection) -> Entry:
    """methods: of each, findings by outcome, the share that it suppresses, and over findings the medians of the
    evaluations of a picture, of how like pictures stayed to those without it, of similarity, and of alignment with the
    prompt where that was asked. findings: the most similar first, each with a picture without a method, and the same
    noise by each. bound: what none of so many copies leaves possible."""
    asked = rows_of(connection, "SELECT any_value(n_asked) AS n FROM mitigated")[0]["n"]
    return {
        "n_asked": asked,
        # The first strength without a copy is told, out of as many as there may be.
        "bound": None if asked is None else upper_bound(0, asked, 1 - 0.05 / MOST_STRENGTHS),
        "methods": _methods(connection),
        "findings": _findings(connection),
    }


def _methods(connection: Connection) -> list[Entry]:
    counts = ", ".join(f"count(*) FILTER (outcome = '{name}') AS \"{name}\"" for name in (*OUTCOMES, *UNTOLD))
    rows = rows_of(
        connection,
        f"""
        SELECT method, count(*) AS n, median(before_copies / nullif(before_pictures, 0)) AS before_share,
               median(n_copies / nullif(n_pictures, 0)) AS copied_share, median(evaluations) AS evaluations,
               median(before_evaluations) AS without,
               median(like_before) AS like_before, median(similarity) AS similarity,
               median(before_similarity) AS before_similarity, median(alignment) AS alignment,
               median(before_alignment) AS before_alignment, {counts}
        FROM mitigated GROUP BY method ORDER BY "suppressed" DESC, "weakened" DESC, method""",  # noqa: S608
    )
    return [row | {"share": rate(row["suppressed"], sum(row[name] for name in OUTCOMES))} for row in rows]


_SHOWN = f"""
    SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY prompt_id
                                                ORDER BY band = 'copy' DESC NULLS LAST, similarity DESC NULLS LAST,
                                                         seed_index) AS place
                   FROM mitigation WHERE method = '{UNMITIGATED}') WHERE place = 1"""  # noqa: S608 - a constant
"""Of each finding the picture without a method that is the best evidence."""


def _findings(connection: Connection) -> list[Entry]:
    """Pictures of methods are of the noise of the one without, where one was drawn."""
    tried: dict[str, list[Entry]] = {}
    for row in rows_of(
        connection,
        f"""
        SELECT t.*, m.image_path
        FROM mitigated t JOIN ({_SHOWN}) s USING (prompt_id)
             LEFT JOIN mitigation m ON m.prompt_id = t.prompt_id AND m.method = t.method AND m.strength = t.strength
                                   AND m.seed_index = s.seed_index
        ORDER BY t.prompt_id, t.method""",  # noqa: S608 - a constant
    ):
        tried.setdefault(row["prompt_id"], []).append(row)
    before = rows_of(
        connection,
        f"""
        SELECT s.prompt_id, c.prompt, s.seed_index, s.image_path, s.image_sha256, s.thumbnail_path, s.reference_id,
               s.similarity
        FROM ({_SHOWN}) s JOIN corpus c USING (prompt_id)
        ORDER BY s.similarity DESC NULLS LAST, s.prompt_id""",  # noqa: S608 - a constant
    )
    return [row | {"methods": tried.get(row["prompt_id"], [])} for row in before]


MITIGATION_SECTION = ReportSection(
    "mitigate",
    "What suppresses the findings",
    mitigation,
    (files(__package__) / "mitigation.html").read_text(encoding="utf-8"),
)
