"""The views and macros over a run's tables: what people ask of an audit, written once.

judged             one row for each sample: its match that decides, the first that is a copy, else the nearest
generated          one row for each prompt with samples: how many, how many copies, and its best sample's match
findings           audited prompts with at least one sample that is a copy, one row a prompt
corroborated       prompts with pictures: whether these are alike and a copy localised, beyond what harmless ones are
grades             what speaks for each audited prompt, from "none" to "localised"
mitigated          each finding and method: the strength that is told, copies before and after, and what became of it
risk               every audited prompt with its decision and its strongest evidence, one row a prompt
prompt_metrics     every scored prompt with one column a metric; of later tiers METRIC_tier_2 and so on
prompt_ranks       the same columns with the place of the value among the prompts of its role, 1 for the largest
families           audited prompts by family: the smallest p, flags and findings
coverage           how many prompts of each role came how far
errors             every row that was rejected or failed, with its table, its key and the reason
copies             how many source rows each prompt stands for
indistinguishable  prompts that the model cannot tell apart (equal after truncation)
outcomes           rows of every table by status

by_label('name')   prompts, flags and findings for each value of a label that corpus.labels passed through
matches_of('id')   the matches of a prompt's samples, best first

A run has the views of which it has the tables: one that an earlier version made may lack some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sharpaudit.tables.schemas import Table

CURRENT = {
    "samples": "SELECT s.* FROM stored_samples s JOIN triage t USING (prompt_id) WHERE s.seed_index < t.n_samples",
    "matches": "SELECT m.* FROM stored_matches m SEMI JOIN samples s USING (sample_id)",
    "mitigation": "SELECT m.* FROM stored_mitigation m JOIN triage t USING (prompt_id) WHERE t.n_samples > 0",
    "corroboration": "SELECT c.* FROM stored_corroboration c JOIN triage t USING (prompt_id) WHERE t.n_samples > 0",
}
"""Only what the current triage selects: samples of an earlier selection stay on disk and out of the tables."""

LEAST_AGREEMENT = 0.25
"""The line of a localised copy where harmless prompts draw a lower one: a quarter of what is to be seen. Typed in, for
of harmless pictures often nothing agrees at all."""
WHOLE_AGREEMENT = 0.78
"""Agreement from which on a copy is of the whole picture; below it a part differs, as in a template with a region that
varies. Chosen on the lab's development split, for pictures of 64 pixels: docs/decisions.md."""
UNMITIGATED = "none"
"""The method that is none: the control of every mitigation."""
WIDE, RANKS = "prompt_metrics", "prompt_ranks"
"""The views that a database file holds as tables."""
VIEWS = (
    "findings",
    "risk",
    "prompt_metrics",
    "prompt_ranks",
    "families",
    "coverage",
    "errors",
    "generated",
    "judged",
    "corroborated",
    "grades",
    "mitigated",
    "copies",
    "indistinguishable",
    "outcomes",
)
"""Beside the tables; `by_label` and `matches_of` are macros."""

# One sample is the best one, with all that belongs to it: ties go to the smallest seed, so that evidence is stable.
_VIEWS = {
    "judged": """
        SELECT * EXCLUDE (place) FROM (
            SELECT m.*, row_number() OVER (PARTITION BY m.sample_id
                                           ORDER BY m.band = 'copy' DESC NULLS LAST, m.rank) AS place
            FROM matches m
        ) WHERE place = 1""",
    "generated": """
        WITH placed AS (
            SELECT s.prompt_id, s.sample_id, s.seed_index, s.image_path, s.image_sha256, m.band, m.similarity,
                   m.reference_id, m.thumbnail_path,
                   row_number() OVER (PARTITION BY s.prompt_id
                                      ORDER BY m.band = 'copy' DESC NULLS LAST, m.similarity DESC NULLS LAST,
                                               s.seed_index) AS place
            FROM samples s LEFT JOIN judged m ON m.sample_id = s.sample_id
        ), told AS (
            SELECT prompt_id, count(*) AS n_samples, count(*) FILTER (band = 'copy') AS n_copies
            FROM placed GROUP BY prompt_id
        )
        SELECT told.prompt_id, told.n_samples, told.n_copies, b.similarity AS best_similarity,
               b.sample_id AS best_sample_id, b.seed_index AS best_seed_index, b.image_path AS best_image_path,
               b.image_sha256 AS best_image_sha256, b.reference_id AS best_reference_id, b.thumbnail_path
        FROM told JOIN placed b ON b.prompt_id = told.prompt_id AND b.place = 1""",
    "findings": """
        SELECT t.prompt_id, c.prompt, t.role, t.selected_for, t.tier, t.metric, t.value, t.p_value, t.q_value,
               t.stratum, g.* EXCLUDE (prompt_id)
        FROM generated g JOIN triage t ON t.prompt_id = g.prompt_id JOIN corpus c ON c.prompt_id = g.prompt_id
        WHERE t.role = 'audit' AND g.n_copies > 0""",
    "risk": """
        SELECT t.prompt_id, c.prompt, c.family_id, c.style, t.tier, t.metric, t.value, t.p_value, t.q_value,
               t.calibrated_by, t.flagged, t.selected_for, coalesce(g.n_samples, 0) AS n_samples,
               coalesce(g.n_copies, 0) AS n_copies, g.best_similarity,
               CASE WHEN g.n_copies > 0 THEN 'copy' WHEN g.n_samples > 0 THEN 'generated, no copy'
                    WHEN t.p_value IS NOT NULL THEN 'score only' ELSE 'none' END AS evidence
        FROM triage t JOIN corpus c ON c.prompt_id = t.prompt_id LEFT JOIN generated g ON g.prompt_id = t.prompt_id
        WHERE t.role = 'audit'""",
    # Of harmless prompts as many may lie above these lines as above that of a copy; those count that have all pictures.
    "corroborated": f"""
        WITH seen AS (
            SELECT list_sort(list(c.alike), 'DESC', 'NULLS LAST') AS alike,
                   list_sort(list(c.agreement), 'DESC', 'NULLS LAST') AS agreement, any_value(b.n_exceptions) + 1 AS n
            FROM corroboration c JOIN triage t USING (prompt_id), bands b
            WHERE t.selected_for = 'band' AND c.n_pictures = t.n_samples
        ), lines AS (
            SELECT list_extract(alike, n) AS alike,
                   CASE WHEN list_extract(agreement, n) IS NOT NULL
                        THEN greatest(list_extract(agreement, n), {LEAST_AGREEMENT}) END AS agreement
            FROM seen
        )
        SELECT c.*, t.selected_for, l.alike AS alike_above, l.agreement AS agreement_above,
               c.n_pictures = t.n_samples AS has_all_pictures,
               CASE WHEN c.agreement >= {WHOLE_AGREEMENT} THEN 'whole' WHEN c.agreement IS NOT NULL THEN 'part' END
                   AS extent,
               coalesce(c.alike > l.alike AND c.n_pictures = t.n_samples, false) AS is_alike,
               coalesce(c.agreement > l.agreement, false) AS is_localised
        FROM corroboration c JOIN triage t USING (prompt_id), lines l""",  # noqa: S608 - a constant
    "grades": """
        SELECT r.prompt_id, r.selected_for,
               CASE WHEN r.n_copies > 0 AND k.is_localised THEN 'localised'
                    WHEN r.n_copies > 0 AND b.verified_by IS NOT NULL THEN 'two instruments'
                    WHEN r.n_copies > 0 THEN 'one instrument' WHEN k.is_alike THEN 'alike across seeds'
                    WHEN r.selected_for IN ('flagged', 'uncalibrated') THEN 'score only' ELSE 'none' END AS grade
        FROM risk r LEFT JOIN corroborated k ON k.prompt_id = r.prompt_id
             LEFT JOIN (SELECT any_value(verified_by) AS verified_by FROM bands) b ON true""",
    # Told is the weakest strength that suppresses; else, of those drawn whole, the one with the fewest copies.
    "mitigated": f"""
        WITH arms AS (
            SELECT prompt_id, method, strength, any_value(setting) AS setting, count(*) AS n_drawn,
                   count(*) FILTER (status = 'ok') AS n_pictures, count(*) FILTER (band = 'copy') AS n_copies,
                   max(similarity) AS best_similarity, avg(similarity) AS similarity, avg(like_before) AS like_before,
                   median(like_others) AS alike, avg(alignment) AS alignment, avg(evaluations) AS evaluations,
                   count(reached) AS n_aimed, count(*) FILTER (reached) AS n_reached
            FROM mitigation GROUP BY prompt_id, method, strength
        ), told AS (
            SELECT a.*, b.n_copies AS before_copies, b.n_pictures AS before_pictures, b.similarity AS before_similarity,
                   b.alike AS before_alike, b.alignment AS before_alignment,
                   b.evaluations AS before_evaluations, b.n_drawn AS n_asked,
                   max(a.strength) OVER one AS n_strengths,
                   arg_max(a.n_reached < a.n_aimed, a.strength) OVER one AS fell_short,
                   row_number() OVER (one ORDER BY a.n_drawn < b.n_drawn, a.n_copies + a.n_drawn - a.n_pictures,
                                                   a.strength) AS place
            FROM arms a JOIN arms b ON b.prompt_id = a.prompt_id AND b.method = '{UNMITIGATED}'
            WHERE a.method <> '{UNMITIGATED}' WINDOW one AS (PARTITION BY a.prompt_id, a.method)
        )
        SELECT * EXCLUDE (place, n_drawn, fell_short),
               CASE WHEN n_pictures = 0 THEN 'not possible'
                    WHEN n_pictures < n_asked OR before_pictures < n_asked THEN 'incomplete'
                    WHEN before_copies = 0 THEN 'no copy before'
                    WHEN n_copies = 0 THEN 'suppressed' WHEN fell_short THEN 'not reached'
                    WHEN 2 * n_copies <= before_copies THEN 'weakened' ELSE 'failed' END AS outcome
        FROM told WHERE place = 1""",  # noqa: S608 - a constant
    "families": """
        SELECT family_id, arg_min(prompt, (coalesce(p_value, 2), prompt_id)) AS prompt, count(*) AS n_prompts,
               min(p_value) AS smallest_p, min(q_value) AS q_value, count(*) FILTER (flagged) AS n_flagged,
               count(*) FILTER (n_copies > 0) AS n_findings, max(best_similarity) AS best_similarity
        FROM risk GROUP BY family_id""",
    "coverage": """
        SELECT c.role, count(*) AS prompts, count(*) FILTER (s.prompt_id IS NOT NULL) AS scored,
               count(*) FILTER (t.p_value IS NOT NULL) AS decided, count(*) FILTER (t.flagged) AS flagged,
               count(*) FILTER (t.selected_for <> 'none') AS selected,
               count(*) FILTER (g.prompt_id IS NOT NULL) AS generated,
               count(*) FILTER (g.best_similarity IS NOT NULL) AS matched
        FROM corpus c LEFT JOIN triage t ON t.prompt_id = c.prompt_id
        LEFT JOIN (SELECT DISTINCT prompt_id FROM scores WHERE value IS NOT NULL) s ON s.prompt_id = c.prompt_id
        LEFT JOIN generated g ON g.prompt_id = c.prompt_id GROUP BY c.role""",
    "copies": "SELECT prompt_id, count(*) AS n_copies FROM origins WHERE status = 'ok' GROUP BY prompt_id",
    "indistinguishable": """
        SELECT model_input_id, count(*) AS n_prompts, list(prompt_id ORDER BY prompt_id) AS prompt_ids
        FROM corpus GROUP BY model_input_id HAVING count(*) > 1""",
}
_MACROS = {
    # map_extract gives a list in every version of DuckDB; map[key] changed.
    "by_label(label)": """
        SELECT list_extract(map_extract(o.labels, label), 1) AS value, count(DISTINCT o.prompt_id) AS n_prompts,
               count(DISTINCT o.prompt_id) FILTER (r.flagged) AS n_flagged,
               count(DISTINCT o.prompt_id) FILTER (r.n_copies > 0) AS n_findings
        FROM origins o JOIN risk r ON r.prompt_id = o.prompt_id GROUP BY 1""",
    "matches_of(id)": """
        SELECT s.seed_index, m.rank, m.reference_id, m.similarity, m.band, s.image_path, m.thumbnail_path
        FROM samples s JOIN matches m ON m.sample_id = s.sample_id WHERE s.prompt_id = id
        ORDER BY m.similarity DESC NULLS LAST, s.seed_index, m.rank""",
}


TAKEN = frozenset({*VIEWS, *(head.partition("(")[0] for head in _MACROS)})
"""Names of views and macros, which no table and no view of others has."""
INTERNAL = ("stored_", "empty_")
"""What the names of what stands behind the tables begin with."""


def view_name(table: Table) -> str:
    """The table's name in SQL: fit/unconditional is fit_unconditional."""
    return view_of(table.name)


def view_of(name: str) -> str:
    """The same of its name alone."""
    return name.replace("/", "_")


@dataclass(frozen=True)
class View:
    """A view, or a macro of those parameters. sql: its select, which says what it reads."""

    name: str
    sql: str
    parameters: str | None = None

    @property
    def statement(self) -> str:
        """What makes it."""
        if self.parameters is None:
            return f"CREATE VIEW {identifier(self.name)} AS {self.sql}"
        return f"CREATE MACRO {identifier(self.name)}({self.parameters} AS TABLE {self.sql}"


def views(tables: Sequence[Table]) -> Iterator[View]:
    """The views and macros over these tables, but for the wide ones, each after those that it reads."""
    yield from (View(name, sql) for name, sql in _VIEWS.items())
    if tables:
        yield View("outcomes", _of_each_table(tables, "status, count(*) AS n", "GROUP BY status"))
        yield View("errors", _of_each_table(tables, "{key} AS key, status, reason", _FAILED))
    for head, sql in _MACROS.items():
        name, _, parameters = head.partition("(")
        yield View(name, sql, parameters)


def wide(measured: Sequence[tuple[int, str]]) -> str:
    """The wide view's select. measured: the tiers and metrics of the scores."""
    columns = [
        f"max(value) FILTER (metric = {quoted(metric)} AND tier = {int(tier)}) AS {_column(tier, metric)}"
        for tier, metric in measured
    ]
    chosen = ", ".join(["s.prompt_id", "any_value(c.role) AS role", *columns])
    return f"SELECT {chosen} FROM scores s JOIN corpus c ON c.prompt_id = s.prompt_id GROUP BY s.prompt_id"  # noqa: S608


def ranks(measured: Sequence[tuple[int, str]]) -> str:
    """The select of the ranks, from the wide view; null where there is no value. measured: as there."""
    columns = [
        f"CASE WHEN {name} IS NOT NULL "
        f"THEN rank() OVER (PARTITION BY role ORDER BY {name} DESC NULLS LAST) END AS {name}"
        for name in (_column(tier, metric) for tier, metric in measured)
    ]
    return f"SELECT {', '.join(['prompt_id', 'role', *columns])} FROM {WIDE}"  # noqa: S608


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


_FAILED = "WHERE status NOT IN ('ok', 'cleared')"


def identifier(name: str) -> str:
    """A name that is no word of SQL's, whatever it is."""
    return '"' + name.replace('"', '""') + '"'


def _of_each_table(tables: Sequence[Table], columns: str, rest: str) -> str:
    parts = []
    for table in tables:
        key = "concat_ws(' ', " + ", ".join(f"{identifier(name)}::VARCHAR" for name in table.key) + ")"
        name, told = view_name(table), columns.replace("{key}", key)
        told = f"{quoted(table.stage)} AS stage, {quoted(name)} AS table_name, {told}"
        parts.append(f"SELECT {told} FROM {identifier(name)} {rest}")  # noqa: S608
    return " UNION ALL ".join(parts)


def _column(tier: int, metric: str) -> str:
    return identifier(metric if tier == 1 else f"{metric}_tier_{tier}")
