"""The commit protocol: a shard is in the run if and only if its manifest is.

    <table>/<fingerprint8>/part-<shard>-<sha16>.parquet     data, named by its content
    <table>/<fingerprint8>/manifests/<shard>.json           published last, by create-if-absent
    <table>/<fingerprint8>/table.json                       the driver's list of current shards

Order of a commit: write the attempt, reopen and compare it, sync it, rename it to its content's name, sync
the folder, ask the guard (does the run's lock still name our driver?), write and sync the manifest, link it
to its name, sync that folder. Killed anywhere, a run holds either no manifest or a whole shard; execution
is at least once, output exactly once. Of two attempts at one shard the second finds the name taken: with
the same keys it drops its own data, with other keys the run has contradicted itself and stops.

Readers take file lists from manifests, never from globs, and hash every file before they believe it.
"""

from __future__ import annotations

import errno
import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharpaudit.errors import DISK_ERRORS, IntegrityError, Status, UserError
from sharpaudit.tables.files import IN_PROGRESS, Files, crash_point, naming
from sharpaudit.tables.records import checksummed, digest_of, read_checksummed, replace_file
from sharpaudit.tables.schemas import Table

IMAGE = re.compile(r"images/([0-9a-f]{2})/\1[0-9a-f]{62}\.png")
"""The path of a picture within a run."""


@dataclass(frozen=True)
class Manifest:
    """What a committed shard holds.

    keys_digest: over the key columns in row order. about: what all its rows share, such as their role.
    """

    table: str
    fingerprint: str
    shard: str
    file: str
    sha256: str
    bytes: int
    rows: int
    statuses: dict[str, int]
    keys_digest: str
    input_digest: str
    schema_version: int
    images: list[str] = field(default_factory=list)
    keys: list[list[Any]] = field(default_factory=list)
    evaluations: int = 0
    duration_s: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TableCommit:
    """The current shards of a table, and what they were made from."""

    shards: list[str]
    input_digest: str = ""
    quarantined: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def keys_digest(table: pa.Table, key: Sequence[str]) -> str:
    """Digest of the key columns, in row order."""
    return digest_of([table.column(name).to_pylist() for name in key])


class TableFolder:
    """One table of a run at one fingerprint.

    root: the run folder. guard: called before a manifest is published; it raises when this process no
    longer works for the driver that holds the run.
    """

    def __init__(
        self,
        root: Path,
        table: Table,
        fingerprint: str,
        *,
        files: Files | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.table, self.fingerprint = table, fingerprint
        self.folder = root / table.name / fingerprint[:8]
        self.manifests_folder = self.folder / "manifests"
        self._root, self._files, self._guard = root, files or Files(), guard

    def manifest(self, shard: str) -> Manifest | None:
        """The manifest of a shard, or None if it is not committed."""
        path = self.manifests_folder / f"{shard}.json"
        if not path.exists():
            return None
        manifest = Manifest(**read_checksummed(path))
        if manifest.fingerprint != self.fingerprint or manifest.shard != shard or manifest.table != self.table.name:
            raise IntegrityError(f"{path}: belongs to another table, shard or configuration")
        named = f"part-{shard}-{manifest.sha256[:16]}.parquet"
        if manifest.file != named or not all(map(IMAGE.fullmatch, manifest.images)):
            raise IntegrityError(f"{path}: names files that a shard cannot have")
        return manifest

    def manifests(self) -> list[Manifest]:
        """All committed shards, by name."""
        names = sorted(path.stem for path in self.manifests_folder.glob("*.json"))
        found = (self.manifest(name) for name in names)
        return [manifest for manifest in found if manifest is not None]

    def current(self) -> list[Manifest]:
        """The shards that the table commit lists; none before there is one."""
        commit = self.table_commit()
        manifests = [(shard, self.manifest(shard)) for shard in (commit.shards if commit else [])]
        missing = [shard for shard, manifest in manifests if manifest is None]
        if missing:
            raise IntegrityError(f"{self.manifests_folder}/{missing[0]}.json: a committed shard's manifest is missing")
        return [manifest for _, manifest in manifests if manifest is not None]

    def path(self, manifest: Manifest) -> Path:
        """The data file of a shard."""
        return self.folder / manifest.file

    def read(self, manifest: Manifest, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a committed shard. Raises IntegrityError unless the file is byte for byte what was committed."""
        path = self.path(manifest)
        file = pq.ParquetFile(pa.BufferReader(verified_bytes(path, manifest)))
        if file.metadata.num_rows != manifest.rows:
            raise IntegrityError(f"{path}: {file.metadata.num_rows} rows, its manifest records {manifest.rows}")
        if file.schema_arrow != self.table.schema:
            raise IntegrityError(f"{path}: {_first_difference(self.table.schema, file.schema_arrow)}")
        return file.read() if columns is None else file.read(list(columns)).select(list(columns))

    def read_all(self, manifests: Iterable[Manifest], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of several shards, one after another."""
        parts = [self.read(manifest, columns) for manifest in manifests]
        empty = self.table.schema.empty_table()
        return pa.concat_tables(parts or [empty.select(list(columns)) if columns is not None else empty])

    def commit(
        self,
        shard: str,
        rows: pa.Table,
        *,
        input_digest: str,
        duration_s: float = 0.0,
        keyed: bool = False,
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> Manifest:
        """Publish the rows of a shard and return its manifest; the earlier one if another attempt won.

        keyed: list the keys in the manifest, for a stage whose work is "what no manifest lists".
        """
        rows = self._checked(shard, rows)
        self._files.make_folder(self.manifests_folder)
        manifest = self._publish_data(shard, rows)
        columns = [rows.column(name).to_pylist() for name in self.table.key] if keyed else []
        manifest = replace(
            manifest,
            input_digest=input_digest,
            duration_s=round(duration_s, 3),
            keys=[list(key) for key in zip(*columns, strict=True)],
            about=dict(about),
        )
        return self._publish_manifest(manifest)

    def commit_table(self, commit: TableCommit) -> None:
        """Replace the list of current shards. Only the driver calls this."""
        self._files.make_folder(self.folder)
        if self.table_commit() != commit:
            self._guard()
            # Whoever published what is listed may have ended before its name was durable.
            for folder in (self.manifests_folder, self.folder, self.folder.parent, self._root):
                if folder.is_dir():
                    self._files.sync_folder(folder)
            replace_file(self.folder / "table.json", checksummed(asdict(commit)), self._files)
            crash_point("table.committed", self.table.name)

    def table_commit(self) -> TableCommit | None:
        """The list of current shards, or None before the table was committed once."""
        path = self.folder / "table.json"
        return TableCommit(**read_checksummed(path)) if path.exists() else None

    def sweep(self) -> int:
        """Remove attempts and data files that no manifest lists; return how many."""
        listed = {manifest.file for manifest in self.manifests()}
        stray = [*self.folder.glob(f".*{IN_PROGRESS}"), *self.manifests_folder.glob(f".*{IN_PROGRESS}")]
        stray += [path for path in self.folder.glob("part-*.parquet") if path.name not in listed]
        for path in stray:
            self._files.remove(path)
        return len(stray)

    def forget(self, manifest: Manifest) -> None:
        """Take a shard out of the run. The manifest goes first, so that none is ever left without its data."""
        self._guard()
        self._files.remove(self.manifests_folder / f"{manifest.shard}.json")
        self._files.sync_folder(self.manifests_folder)
        crash_point("forgotten", manifest.shard)
        self._files.remove(self.path(manifest))

    def _checked(self, shard: str, rows: pa.Table) -> pa.Table:
        rows = rows.select(self.table.schema.names).cast(self.table.schema).combine_chunks()
        rows.validate(full=True)
        for column in self.table.schema:
            values = rows.column(column.name)
            if not column.nullable and values.null_count:
                raise ValueError(f"{self.table.name}/{shard}: null in column {column.name}")
            if pa.types.is_list(column.type):
                values = pc.list_flatten(values)
            if pa.types.is_floating(values.type) and not pc.all(pc.is_finite(values), min_count=0).as_py():
                raise ValueError(f"{self.table.name}/{shard}: NaN or infinity in column {column.name}")
        unknown = set(rows.column("status").to_pylist()) - set(Status)
        if unknown:
            raise ValueError(f"{self.table.name}/{shard}: unknown status {unknown}")
        if rows.group_by(list(self.table.key)).aggregate([]).num_rows != rows.num_rows:
            raise ValueError(f"{self.table.name}/{shard}: a key of {self.table.key} appears twice")
        return rows

    def _publish_data(self, shard: str, rows: pa.Table) -> Manifest:
        data = parquet_bytes(rows)
        sha256 = hashlib.sha256(data).hexdigest()
        attempt = self.folder / f".attempt-{uuid.uuid4().hex}{IN_PROGRESS}"
        target = self.folder / f"part-{shard}-{sha256[:16]}.parquet"
        try:
            self._files.write(attempt, data)
            crash_point("attempt.written", shard)
            written = attempt.read_bytes()
            if hashlib.sha256(written).hexdigest() != sha256 or not pq.read_table(pa.BufferReader(written)).equals(
                rows
            ):
                raise OSError(errno.EIO, "what was read back is not what was written", str(attempt))
            self._files.sync(attempt)
            crash_point("attempt.synced", shard)
            self._files.rename(attempt, target)
        except BaseException:
            self._files.remove(attempt)
            raise
        crash_point("data.renamed", shard)
        self._files.sync_folder(self.folder)
        counts = rows.column("status").value_counts().to_pylist()
        image_columns = [name for name in ("image_path", "thumbnail_path") if name in rows.column_names]
        images = {path for name in image_columns for path in rows.column(name).to_pylist() if path is not None}
        evaluations = pc.sum(rows.column("evaluations")).as_py() if "evaluations" in rows.column_names else 0
        return Manifest(
            table=self.table.name,
            fingerprint=self.fingerprint,
            shard=shard,
            file=target.name,
            sha256=sha256,
            bytes=len(data),
            rows=rows.num_rows,
            statuses=dict(sorted((entry["values"], entry["counts"]) for entry in counts)),
            keys_digest=keys_digest(rows, self.table.key),
            input_digest="",
            schema_version=self.table.version,
            images=sorted(images),
            evaluations=evaluations or 0,
        )

    def _publish_manifest(self, manifest: Manifest) -> Manifest:
        attempt = self.manifests_folder / f".manifest-{uuid.uuid4().hex}{IN_PROGRESS}"
        try:
            self._files.write(attempt, checksummed(asdict(manifest)))
            self._files.sync(attempt)
            crash_point("manifest.written", manifest.shard)
            self._guard()
            self._files.link(attempt, self.manifests_folder / f"{manifest.shard}.json")
        except FileExistsError:
            return self._yield_to_winner(manifest)
        finally:
            self._files.remove(attempt)
        crash_point("manifest.linked", manifest.shard)
        self._files.sync_folder(self.manifests_folder)
        crash_point("committed", manifest.shard)
        return manifest

    def _yield_to_winner(self, ours: Manifest) -> Manifest:
        winner = self.manifest(ours.shard)
        if winner is None or (winner.keys_digest, winner.input_digest) != (ours.keys_digest, ours.input_digest):
            raise IntegrityError(
                f"{self.table.name}/{ours.shard}: two attempts at the same shard gave different rows; "
                "the inputs changed under the run, or a stage is not deterministic"
            )
        if winner.file != ours.file:
            self._files.remove(self.folder / ours.file)
        return winner


def parquet_bytes(rows: pa.Table) -> bytes:
    """Parquet with page checksums. Written to memory first: a writer that fails half-way leaves a valid, short file."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def _first_difference(expected: pa.Schema, found: pa.Schema) -> str:
    """The first column that is not as the table's schema says."""
    for column in expected:
        if column.name not in found.names:
            return f"column {column.name} is missing, {column.type} was expected"
        if found.field(column.name) != column:
            return f"column {column.name} is {found.field(column.name).type}, {column.type} was expected"
    extra = [name for name in found.names if name not in expected.names]
    return f"column {extra[0]} was not expected" if extra else "the order of its columns is another"


def verified_bytes(path: Path, manifest: Manifest) -> bytes:
    """The bytes of a shard's file. Raises IntegrityError, naming the file, unless they are those of its manifest."""
    try:
        with naming(path):
            data = path.read_bytes()
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: a committed file is missing") from error
    if len(data) != manifest.bytes or hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise IntegrityError(
            f"{path}: {len(data)} bytes that are not the {manifest.bytes} bytes committed; the file was changed or cut"
        )
    return data


def probe_links(root: Path) -> None:
    """Refuse a file system without hard links, on which create-if-absent would not be atomic."""
    source, target = (root / f".probe-{uuid.uuid4().hex}{IN_PROGRESS}" for _ in range(2))
    files = Files()
    try:
        files.write(source, b"")
        files.link(source, target)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise UserError(
            f"{root}: this file system cannot hold a run (a hard link failed: {error.strerror}); "
            "use a local or POSIX network disk"
        ) from error
    finally:
        files.remove(source)
        files.remove(target)
