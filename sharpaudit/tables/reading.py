"""The tables of a run for readers: which files are current, verified before DuckDB sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from sharpaudit.errors import UserError
from sharpaudit.plugs import STAGES, require
from sharpaudit.tables.query import Connection, connect, disk_errors, materialise
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.shards import verified_bytes


def current_files(run: RunFolder) -> dict[str, list[Path]]:
    """The Parquet files of each table: those of the table commit, or of a stage at work those committed so far.

    Each is hashed: a changed file is refused by name, since DuckDB would read damaged numbers without a word.
    """
    found: dict[str, list[Path]] = {}
    for table in run.tables():
        folder = run.table(table)
        manifests = folder.manifests() if folder.table_commit() is None else folder.current()
        for manifest in manifests:
            verified_bytes(folder.path(manifest), manifest)
        found[table.name] = [folder.path(manifest) for manifest in manifests]
    return found


def foreign_views(run: RunFolder) -> dict[str, str]:
    """The selects of the views that foreign stages of the run add, by their names.

    None of a stage that is not here as the run was made with it. Raises IntegrityError for a damaged record.
    """
    found: dict[str, str] = {}
    for plug in run.foreign_plugs():
        if plug["kind"] == STAGES.kind:
            # Missing, of another version, offered twice or failing as it is imported: the tables are read without it.
            with suppress(UserError):
                require([plug], same=True)
                found |= STAGES[plug["name"]].views
    return found


def write_database(run: RunFolder, out: Path) -> None:
    """All tables and views of the run as they are now in one new DuckDB file; whole or not at all."""
    materialise(current_files(run), out, tables=run.tables(), others=foreign_views(run))


@contextmanager
def open_connection(run: RunFolder) -> Iterator[Connection]:
    """A locked-down DuckDB connection over the current tables, closed at the end of the block.

    What does not fit into memory goes to a temporary folder.
    """
    with TemporaryDirectory() as spill, disk_errors(Path(spill)):
        connection = connect(current_files(run), run.root, Path(spill), tables=run.tables(), others=foreign_views(run))
        try:
            yield connection
        finally:
            connection.close()
