"""Findings: audited prompts with a copy, the most similar first."""

from __future__ import annotations

from sharpaudit.report.reading import Entry, rows_of
from sharpaudit.tables.query import Connection


def findings(connection: Connection) -> Entry:
    """All of them, the most similar first; the page shows as many as the configuration says."""
    rows = rows_of(
        connection,
        """
        SELECT f.*, j.verified_similarity AS best_verified, coalesce(c.n_copies, 0) AS source_rows,
               g.grade, f.best_similarity - k.background AS normalised_similarity, k.alike, k.agreement,
               k.same_share AS copied_share, k.plain_share, k.mirrored, k.scale, array_to_string(k.cells, '') AS cells,
               k.cells_wide, k.extent,
               (SELECT list(o.external_id ORDER BY o.source, o.source_row) FROM origins o
                WHERE o.prompt_id = f.prompt_id AND o.external_id IS NOT NULL) AS external_ids
        FROM findings f LEFT JOIN copies c USING (prompt_id) LEFT JOIN judged j ON j.sample_id = f.best_sample_id
             LEFT JOIN grades g USING (prompt_id) LEFT JOIN corroborated k USING (prompt_id)
        ORDER BY best_similarity DESC, prompt_id""",
    )
    return {"total": len(rows), "rows": rows}
