"""A run for analysts: SQL and the common questions, as Arrow tables or as pandas or polars frames.

    import sharpaudit

    with sharpaudit.open_run("runs/quickstart") as run:
        run.findings(to="pandas")
        run.sql("select * from risk where p_value <= .01")

Every file is verified against its manifest when the run is opened; tables/views.py says what can be asked.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from sharpaudit.errors import UserError, printable
from sharpaudit.tables.query import connect, table_of, views_there
from sharpaudit.tables.reading import current_files, foreign_views
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.views import VIEWS, identifier

Frame = Literal["arrow", "pandas", "polars"]


class Run:
    """A run folder, open for reading. Close it, or use it in a with statement; it can do nothing but read."""

    def __init__(self, path: str | Path) -> None:
        """Raises UserError where there is no run, or none that this reads, IntegrityError for a damaged file."""
        folder = RunFolder.open(Path(path).absolute())
        self.root = folder.root
        self._foreign = foreign_views(folder)
        tables = folder.tables()
        self._connection = connect(current_files(folder), folder.root, tables=tables, others=self._foreign)

    def sql(self, statement: str, to: Frame = "arrow") -> Any:
        """The rows of one reading statement: a pyarrow.Table, or a pandas or polars DataFrame.

        Raises UserError for another statement, for a mistake in it, and where pandas or polars is not installed.
        """
        if to not in ("arrow", "pandas", "polars"):
            raise UserError(f'to = "{printable(str(to))}": "arrow", "pandas" or "polars"')
        return _as(table_of(self._connection, statement), to)

    def view(self, name: str, to: Frame = "arrow") -> Any:
        """A whole view, such as "risk" or "prompt_metrics". Raises UserError for a name that is none."""
        there = views_there(self._connection)
        known = [view for view in [*VIEWS, *self._foreign] if view in there]
        if name not in known:
            raise UserError(f'"{printable(name)}" is no view; there are {", ".join(known)}')
        return self.sql(f"SELECT * FROM {identifier(name)} ORDER BY ALL", to)  # noqa: S608

    def findings(self, to: Frame = "arrow") -> Any:
        """Audited prompts with a copy of a training picture, most similar first."""
        return self.sql("SELECT * FROM findings ORDER BY best_similarity DESC, prompt_id", to)

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as(table: pa.Table, to: Frame) -> Any:
    if to == "arrow":
        return table
    try:
        library = importlib.import_module(to)
    except ImportError as error:
        raise UserError(f'to = "{to}" needs {to}: pip install "sharpaudit[analysis]"') from error
    return table.to_pandas() if to == "pandas" else library.from_arrow(table)
