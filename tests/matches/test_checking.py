"""A whole index has no fault, and every kind of damage is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from sharpaudit.config import LAB
from sharpaudit.images import sha256_hex
from sharpaudit.matches.build import build_index
from sharpaudit.matches.checking import faults_of
from sharpaudit.tables.records import checksummed
from tests.support.reference_pictures import TABLE, VECTORS, broken_picture, flat_picture, picture


@pytest.fixture
def built(tmp_path: Path) -> Path:
    build_index(tmp_path / "index", "pixels-16", [picture(1), broken_picture(), picture(2), flat_picture(), picture(3)])
    return tmp_path / "index"


def test_whole_indexes_have_no_fault(built: Path) -> None:
    assert list(faults_of(built)) == []
    assert list(faults_of(LAB / "analytic/index")) == []


def rewritten(built: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The manifest, changed, with the digests of the files as they are."""
    tree = json.loads((built / "manifest.json").read_bytes())
    del tree["checksum"]
    tree["sha256"] = {name: sha256_hex((built / name).read_bytes()) for name in (TABLE, VECTORS)}
    change(tree)
    (built / "manifest.json").write_bytes(checksummed(tree))


def table(built: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    rows = pq.read_table(built / TABLE)
    pq.write_table(change(rows), built / TABLE, write_page_checksum=True)
    rewritten(built, lambda tree: None)


def vectors(built: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(built / VECTORS, change(np.load(built / VECTORS)))
    rewritten(built, lambda tree: None)


def with_column(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = rows.schema.get_field_index(name)
    return rows.set_column(at, rows.schema.field(name), pa.array(values, rows.schema.field(name).type))


def second_zeroed(rows: np.ndarray) -> np.ndarray:
    rows[1] = 0
    return rows


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda built: (built / VECTORS).write_bytes(b"cut"), "00000.npy: changed or cut"),
        (lambda built: (built / TABLE).unlink(), "00000.parquet: cannot read this file"),
        (lambda built: (built / "manifest.json").write_bytes(b"{}"), "not the manifest of an index"),
        (lambda built: (built / "more.txt").write_text("x"), "more.txt: is no file of this index"),
        (lambda built: vectors(built, second_zeroed), "row 1 has length 0"),
        (lambda built: vectors(built, lambda rows: rows[:2]), "float32 (2, 768), where float32 (3, 768) is expected"),
        (lambda built: vectors(built, lambda rows: rows.astype(np.float16)), "float16 (3, 768), where"),
        (
            lambda built: table(built, lambda t: with_column(t, "reference_id", ["a"] * 5)),
            "4 references have the id of another",
        ),
        (lambda built: table(built, lambda t: t.slice(0, 4)), "4 rows, 2 of them ok; the manifest says 5 and 3"),
        (lambda built: table(built, lambda t: t.drop_columns(["caption"])), "has other columns than references have"),
        (lambda built: table(built, lambda t: with_column(t, "source", ["other"] * 5)), "its counts are not those"),
        (lambda built: rewritten(built, lambda tree: tree.update(thumbnails=False)), "holds pictures, where"),
        (lambda built: rewritten(built, lambda tree: tree.update(rows=6)), "not the manifest of an index"),
        (lambda built: rewritten(built, lambda tree: tree["statuses"].update(ok=4)), "its counts are not those of the"),
    ],
)
def test_every_damage_is_told(built: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(built)
    assert any(says in fault for fault in faults_of(built)), list(faults_of(built))
    done = CliRunner().invoke(cli, ["index", "verify", str(built)])
    assert done.exit_code == 1
    assert says in done.output


def test_the_commands_tell_what_is_there(built: Path) -> None:
    done = CliRunner().invoke(cli, ["index", "verify", str(built)])
    assert (done.exit_code, done.output) == (0, f"{built}: whole\n")
    told = CliRunner().invoke(cli, ["index", "info", str(built)]).output
    digest = sha256_hex((built / "manifest.json").read_bytes())
    assert told.splitlines() == [
        f"digest {digest}, format 2, 1 part",
        "3 references, 0 duplicates; rejected: 1 no_descriptor, 1 unreadable_image",
        "not looked at: none",
        "sources: 5 set",
        "pictures: thumbnails",
        "profile pixels-16 version 1: 768 x float32",
    ]
