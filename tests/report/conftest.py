"""Tables made by hand, as files, as a connection and as facts."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpaudit.report.facts import collect
from sharpaudit.tables.query import Connection, materialise, open_file
from sharpaudit.tables.schemas import RUN_TABLES
from tests.support.handmade import Rows, make_rows, told

Facts = Callable[..., dict[str, Any]]


@contextmanager
def opened(rows: Rows, root: Path) -> Iterator[Connection]:
    """The database of the rows, which were written as two Parquet files a table."""
    files: dict[str, list[Path]] = {}
    for table in RUN_TABLES:
        for part, own in enumerate((rows[table.name][::2], rows[table.name][1::2])):
            path = root / f"{table.name.replace('/', '_')}-{part}.parquet"
            pq.write_table(pa.Table.from_pylist(own, table.schema), path)
            files.setdefault(table.name, []).append(path)
    materialise(files, root / "audit.duckdb")
    with open_file(root / "audit.duckdb") as connection:
        yield connection


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """The rows as they are, and the folder of their pictures."""
    root = tmp_path_factory.mktemp("handmade")
    return root, make_rows(root)


@pytest.fixture
def rows(made: tuple[Path, Rows], tmp_path: Path) -> Rows:
    """Rows to change at will; their pictures lie below tmp_path."""
    shutil.copytree(made[0] / "images", tmp_path / "images", copy_function=os.link)
    return copy.deepcopy(made[1])


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    """The facts of rows and of what the driver says."""

    def of(rows: Rows, run: dict[str, Any] | None = None) -> dict[str, Any]:
        with opened(rows, tmp_path) as connection:
            return collect(connection, run or told())

    return of


@pytest.fixture(scope="session")
def unchanged(made: tuple[Path, Rows]) -> dict[str, Any]:
    with opened(made[1], made[0]) as connection:
        return collect(connection, told())


@pytest.fixture
def known(unchanged: dict[str, Any]) -> dict[str, Any]:
    """The facts of the rows as they are, to change at will."""
    return copy.deepcopy(unchanged)
