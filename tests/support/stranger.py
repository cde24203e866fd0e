"""Tables and views that a stranger's stage may bring, good ones and bad ones."""

from __future__ import annotations

import pyarrow as pa

from sharpaudit.tables.schemas import Table, schema_of

OUTCOME = [pa.field("status", pa.string(), nullable=False), pa.field("reason", pa.string())]


def table(name: str, stage: str, *fields: pa.Field, key: str = "prompt_id") -> Table:
    columns = [pa.field(key, pa.string(), nullable=False), *fields, *OUTCOME]
    return Table(name, stage, (key,), 1, schema_of(name, 1, columns))


ADDED = table("unlearning", "unlearn", pa.field("share", pa.float64()))


MISTAKEN = {
    "Risk": "select 1 as x",
    "by_label": "select 1 as x",
    "Corpus": "select 1 as x",
    "malformed": "selec 1",
    "two": "select 1; drop view corpus",
    "circular": "with corpus as (from corpus) from corpus",
    "stored_samples": "select 1 as x",
    "no_column": "select no_such_column from corpus",
    "no_text": "\ud800",
    "nothing": "",
}
"""Views that cannot stand beside ours."""
