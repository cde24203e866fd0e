"""The commit protocol: whole or absent, once, and found when damaged."""

from __future__ import annotations

import errno
import hashlib
import math
import multiprocessing
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.errors import IntegrityError
from sharpaudit.tables import shards
from sharpaudit.tables.files import Files
from sharpaudit.tables.records import checksummed, read_checksummed
from sharpaudit.tables.schemas import SCORES
from sharpaudit.tables.shards import TableCommit, TableFolder
from tests.support.faulty import FaultyFiles, LosingFiles, PowerLossError, RecordingFiles

FINGERPRINT = "ab" * 32


def score_rows(values: list[float | None], prefix: str = "p") -> pa.Table:
    rows = [
        {
            "prompt_id": f"{prefix}{i}",
            "tier": 1,
            "metric": "residual_gap",
            "value": value,
            "seed_values": [value],
            "n_seeds": 1,
            "timestep": 981,
            "evaluations": 1,
            "status": "ok" if value is not None else "non_finite",
        }
        for i, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, SCORES.schema)


def folder(root: Path, files: Files | None = None) -> TableFolder:
    return TableFolder(root, SCORES, FINGERPRINT, files=files)


def commit(target: TableFolder, shard: str = "a", rows: pa.Table | None = None) -> shards.Manifest:
    return target.commit(shard, rows if rows is not None else score_rows([1.0, None, 2.5]), input_digest="in")


def test_what_is_committed_is_read_back(tmp_path: Path) -> None:
    rows = score_rows([1.0, None, 2.5])
    manifest = commit(folder(tmp_path), rows=rows)
    assert folder(tmp_path).read(manifest).equals(rows)
    assert (manifest.rows, manifest.statuses) == (3, {"non_finite": 1, "ok": 2})
    assert manifest.evaluations == 3


def test_nothing_is_visible_without_a_manifest(tmp_path: Path) -> None:
    manifest = commit(folder(tmp_path))
    (folder(tmp_path).manifests_folder / "a.json").unlink()
    assert folder(tmp_path).manifest("a") is None
    assert folder(tmp_path).sweep() == 1
    assert not folder(tmp_path).path(manifest).exists()


def test_a_second_attempt_yields_to_the_first_and_writes_nothing(tmp_path: Path) -> None:
    first = commit(folder(tmp_path))
    before = folder(tmp_path).path(first).stat().st_mtime_ns
    # The values differ in the last digits, as on another device; the keys are the same.
    again = commit(folder(tmp_path), rows=score_rows([1.0000001, None, 2.5]))
    assert again == first
    assert len(list(folder(tmp_path).folder.glob("*.parquet"))) == 1
    assert folder(tmp_path).path(first).stat().st_mtime_ns == before


def test_two_attempts_with_other_keys_stop_the_run(tmp_path: Path) -> None:
    commit(folder(tmp_path))
    with pytest.raises(IntegrityError, match="two attempts at the same shard"):
        commit(folder(tmp_path), rows=score_rows([1.0], prefix="q"))


def _race(root: str, barrier: object, rounds: int, wins: object) -> None:
    class Counting(Files):
        won = 0

        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            self.won += 1

    files = Counting()
    for i in range(rounds):
        barrier.wait()  # type: ignore[attr-defined]
        target = TableFolder(Path(root), SCORES, FINGERPRINT, files=files)
        target.commit(f"s{i}", score_rows([float(i)]), input_digest="in")
    wins.put(files.won)  # type: ignore[attr-defined]


def test_of_two_racing_processes_exactly_one_wins_each_round(tmp_path: Path) -> None:
    rounds, context = 200, multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path), barrier, rounds, wins)) for _ in range(2)]
    for racer in racers:
        racer.start()
    total = sum(wins.get() for _ in racers)
    for racer in racers:
        racer.join()
    assert total == rounds
    assert len(folder(tmp_path).manifests()) == rounds
    assert folder(tmp_path).sweep() == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_any_failed_operation_leaves_whole_or_nothing_and_the_next_try_succeeds(tmp_path: Path, code: int) -> None:
    old = commit(folder(tmp_path), "old")
    for n in range(1, 50):
        files = FaultyFiles(n, code)
        try:
            commit(folder(tmp_path, files), f"new{n}")
        except OSError as error:
            assert error.errno == code
            assert error.filename
        else:
            break
        folder(tmp_path).sweep()
        assert folder(tmp_path).read(old).num_rows == 3
        manifest = folder(tmp_path).manifest(f"new{n}")
        assert manifest is None or folder(tmp_path).read(manifest).num_rows == 3
        assert folder(tmp_path).read(commit(folder(tmp_path), f"new{n}")).num_rows == 3
    assert n > 6, "the sweep ended before it failed every operation"
    assert files.count < n


def test_data_is_durable_before_it_is_named_and_named_before_it_is_listed(tmp_path: Path) -> None:
    files = RecordingFiles()
    commit(folder(tmp_path, files))
    # The names of the three new folders, each in the one above it.
    assert files.log[:3] == [("sync_folder", "data")] * 3
    assert files.log[3:] == [
        ("write", "data"),
        ("sync", "data"),
        ("rename", "data"),
        ("sync_folder", "data"),
        ("write", "manifest"),
        ("sync", "manifest"),
        ("link", "manifest"),
        ("sync_folder", "manifest"),
    ]


@pytest.mark.parametrize("names", ["all", "half", "none"])
def test_what_was_committed_outlasts_a_loss_of_power(tmp_path: Path, names: str) -> None:
    """At each operation: what a commit had said is there and whole, what it had not is absent or whole."""
    for n in range(1, 100):
        root, files, said = tmp_path / str(n), LosingFiles(n, names), []
        root.mkdir()
        with suppress(PowerLossError):
            for shard in "ab":
                said.append(commit(folder(root, files), shard))
            break
        files.lose(root)
        found = folder(root).manifests()
        assert said == found[: len(said)]
        assert all(folder(root).read(manifest).num_rows == 3 for manifest in found)
        folder(root).sweep()
        assert [commit(folder(root), shard).shard for shard in "ab"] == ["a", "b"]
        assert folder(root).sweep() == 0
    assert n > 20, "the sweep ended before the power failed at every operation"
    assert files.count < n


def test_durable_means_synced_by_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real files: the descriptors that reach os.fsync are those of the data, its manifest and both folders."""
    synced: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(_place(os.fstat(descriptor))))
    target = folder(tmp_path)
    made = commit(target)
    manifest = target.manifests_folder / f"{made.shard}.json"
    for path in (target.path(made), target.folder, manifest, target.manifests_folder):
        assert _place(path.stat()) in synced, path


def _place(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


@pytest.mark.parametrize("foreign", ["another shard", "another configuration"])
def test_a_manifest_that_lies_elsewhere_is_not_believed(tmp_path: Path, foreign: str) -> None:
    target = folder(tmp_path)
    manifest = target.manifests_folder / f"{commit(target).shard}.json"
    if foreign == "another shard":
        there, name = target, "b"
    else:
        there, name = TableFolder(tmp_path, SCORES, "0" * 64), "a"
        there.manifests_folder.mkdir(parents=True)
    shutil.copy(manifest, there.manifests_folder / f"{name}.json")
    with pytest.raises(IntegrityError, match="belongs to another table, shard or configuration"):
        there.manifest(name)


def test_a_writer_that_fails_half_way_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pq.ParquetWriter.write_table
    for group in range(3):
        seen = []

        def failing(
            self: object, *args: object, _group: int = group, _seen: list[int] = seen, **kwargs: object
        ) -> None:
            _seen.append(1)
            if len(_seen) > _group:
                raise OSError(errno.EIO, "injected in the writer")
            real(self, *args, **kwargs)

        def in_groups(table: pa.Table, sink: object, **kwargs: object) -> None:
            with pq.ParquetWriter(sink, table.schema) as writer:
                for i in range(table.num_rows):
                    writer.write_table(table.slice(i, 1))

        monkeypatch.setattr(pq.ParquetWriter, "write_table", failing)
        monkeypatch.setattr(pq, "write_table", in_groups)
        with pytest.raises(OSError, match="injected"):
            commit(folder(tmp_path))
        assert folder(tmp_path).manifest("a") is None
        assert not list(folder(tmp_path).folder.glob("*"))[1:]
        monkeypatch.undo()


def test_a_short_file_is_noticed_before_it_is_published(tmp_path: Path) -> None:
    class Short(Files):
        def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
            super().write(path, shards.parquet_bytes(score_rows([1.0])) if b"PAR1" in data[:4] else data)

    with pytest.raises(OSError, match="read back"):
        commit(folder(tmp_path, Short()))
    assert folder(tmp_path).manifest("a") is None


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_cut_lengthened_or_swapped_file_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("run")
    manifest, other = commit(folder(root)), commit(folder(root), "b", score_rows([9.0]))
    path = folder(root).path(manifest)
    whole = path.read_bytes()
    damage = data.draw(st.sampled_from(["cut", "append", "swap", "gone"]))
    if damage == "gone":
        path.unlink()
    elif damage == "swap":
        shutil.copy(folder(root).path(other), path)
    else:
        size = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:size] if damage == "cut" else whole + whole[: size + 1])
    with pytest.raises(IntegrityError, match=path.name):
        folder(root).read(manifest)


OTHER_SCHEMAS = {
    "column value is missing, double was expected": lambda rows: rows.drop_columns(["value"]),
    "column value is float, double was expected": lambda rows: recast(rows, "value", pa.float32()),
    "column tier is int64, int32 was expected": lambda rows: recast(rows, "tier", pa.int64()),
    "column extra was not expected": lambda rows: rows.append_column("extra", pa.array([1] * len(rows))),
    "the order of its columns is another": lambda rows: rows.select(rows.column_names[::-1]),
}


def recast(rows: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, rows[name].cast(kind))


@pytest.mark.parametrize("words", OTHER_SCHEMAS)
def test_a_file_of_another_schema_is_refused_by_its_column(tmp_path: Path, words: str) -> None:
    """Whole, and as its manifest says: written by another version, or by somebody else."""
    manifest = commit(folder(tmp_path))
    rows = OTHER_SCHEMAS[words](score_rows([1.0, None, 2.5]))
    data = shards.parquet_bytes(rows)
    digest = hashlib.sha256(data).hexdigest()
    changed = replace(manifest, sha256=digest, bytes=len(data), file=f"part-a-{digest[:16]}.parquet")
    folder(tmp_path).path(changed).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{changed.file}: {words}"):
        folder(tmp_path).read(changed)
    fewer = replace(changed, rows=7)
    with pytest.raises(IntegrityError, match="3 rows, its manifest records 7"):
        folder(tmp_path).read(fewer)


def test_every_sampled_bit_flip_is_found(tmp_path: Path) -> None:
    manifest = commit(folder(tmp_path))
    commit_file = folder(tmp_path).folder / "table.json"
    folder(tmp_path).commit_table(TableCommit(["a"]))
    places = [folder(tmp_path).path(manifest), folder(tmp_path).manifests_folder / "a.json", commit_file]
    for path in places:
        whole = path.read_bytes()
        for k in range(64):
            bit = k * (len(whole) * 8 - 1) // 63
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(flipped))
            try:
                assert folder(tmp_path).read_all(folder(tmp_path).current()).equals(score_rows([1.0, None, 2.5]))
            except IntegrityError as error:
                assert path.name in str(error)
            else:
                # Only white space may differ and still read as the same record.
                assert path.suffix == ".json"
                assert read_checksummed(path) is not None
        path.write_bytes(whole)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_never_committed(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity in column value"):
        commit(folder(tmp_path), rows=score_rows([1.0, value]))


def test_a_repeated_key_or_an_unknown_status_is_never_committed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="appears twice"):
        commit(folder(tmp_path), rows=pa.concat_tables([score_rows([1.0]), score_rows([1.0])]))
    odd = score_rows([1.0]).set_column(8, SCORES.schema.field("status"), pa.array(["fine"]))
    with pytest.raises(ValueError, match="unknown status"):
        commit(folder(tmp_path), rows=odd)


def test_a_commit_asks_its_guard_and_publishes_nothing_when_refused(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("not ours any more")

    with pytest.raises(RuntimeError, match="not ours"):
        TableFolder(tmp_path, SCORES, FINGERPRINT, guard=refuse).commit("a", score_rows([1.0]), input_digest="")
    assert folder(tmp_path).manifest("a") is None


def test_a_listed_shard_without_its_manifest_is_a_loss(tmp_path: Path) -> None:
    commit(folder(tmp_path))
    folder(tmp_path).commit_table(TableCommit(["a"]))
    (folder(tmp_path).manifests_folder / "a.json").unlink()
    with pytest.raises(IntegrityError, match=r"a\.json"):
        folder(tmp_path).current()


def test_seal_refuses_nan_and_keeps_its_tree(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(checksummed({"a": [1, None, "é"]}))
    assert read_checksummed(tmp_path / "x.json") == {"a": [1, None, "é"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        checksummed({"a": math.nan})
