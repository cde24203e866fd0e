"""What manifest.json of an index says, in format 2; of format 1 the same in today's words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sharpaudit.errors import UserError, printable
from sharpaudit.tables.records import checksummed

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
_MAX_BYTES = 2**26


@dataclass(frozen=True)
class Part:
    """rows: of its table. vectors: of these that have one."""

    rows: int
    vectors: int


@dataclass(frozen=True)
class Profile:
    """Vectors of one embedder. weights: file, sha256 and who vouched for it, of an embedder that has some.

    given: whether somebody else made them, and said that it was this embedder.
    """

    version: int
    digest: str
    dimension: int
    dtype: str = "float32"
    weights: dict[str, str] | None = None
    given: bool = False


@dataclass(frozen=True)
class IndexManifest:
    """sources: rows of each data set. rows counts rejected references, vectors not.

    thumbnails: whether the tables hold pictures. not_looked_at: files that were taken for no picture, by kind; None in
    an index of a version that did not count them. training_size: of how many pictures the training set is said to
    consist.
    """

    format_version: int
    parts: Sequence[Part]
    profiles: Mapping[str, Profile]
    thumbnails: bool
    rows: int
    vectors: int
    duplicates: int
    statuses: dict[str, int]
    sources: dict[str, int]
    sha256: dict[str, str]
    not_looked_at: dict[str, int] | None = None
    training_size: int | None = None

    def table(self, part: int) -> str:
        """The table of a part, within the folder."""
        return table_name(part) if self.format_version > 1 else "references.parquet"

    def vector_file(self, profile: str, part: int) -> str:
        """The vectors of a part by an embedder, within the folder."""
        return vectors_name(profile, part) if self.format_version > 1 else "vectors.npy"

    def vector_files(self, profile: str) -> list[str]:
        """The vectors of all parts by an embedder."""
        return [self.vector_file(profile, part) for part in range(len(self.parts))]

    def files_of(self, profile: str) -> list[str]:
        """The data files that hold an embedder's vectors and what they belong to."""
        return [*(self.table(part) for part in range(len(self.parts))), *self.vector_files(profile)]

    def files(self) -> list[str]:
        """All data files."""
        return list(dict.fromkeys(file for profile in self.profiles for file in self.files_of(profile)))

    def holding(self) -> dict[str, Any] | None:
        """What part of the training set the index holds, in counts; None where that was not recorded."""
        if self.not_looked_at is None:
            return None
        return {
            "references": self.vectors,
            "duplicates": self.duplicates,
            "rejected": self.rows - self.vectors,
            "not_looked_at": self.not_looked_at,
            "training_size": self.training_size,
        }

    def to_bytes(self) -> bytes:
        """The file."""
        return checksummed(asdict(self))


def table_name(part: int) -> str:
    """Of a part, within the folder."""
    return f"references/{part:05d}.parquet"


def vectors_name(profile: str, part: int) -> str:
    """Of a part by an embedder, within the folder."""
    return f"vectors/{folder_name(profile)}/{part:05d}.npy"


def folder_name(profile: str) -> str:
    """What folders of an embedder are called within an index."""
    return re.sub(r"[^\w.+-]", "_", profile, flags=re.ASCII)


def read_manifest(folder: Path) -> bytes:
    """The bytes of an index's manifest. Raises UserError where there is none."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES)
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read this file of the index: {error.strerror}") from error


def parse_manifest(path: Path, data: bytes) -> IndexManifest:
    """What the file says. Raises UserError for one that was changed, is of no known format, or none at all."""
    try:
        tree = json.loads(data)
        del tree["checksum"]
        whole = checksummed(tree) == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(_none(path)) from error
    if not whole:
        raise UserError(f"{path}: changed after the index was built; build the index again")
    version = tree.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise UserError(f"{path}: format {version}, this version reads 1 to {FORMAT_VERSION}; build it again")
    try:
        if version == 1:
            tree = _of_format_1(tree)
        tree["parts"] = [Part(**part) for part in tree["parts"]]
        tree["profiles"] = {name: Profile(**told) for name, told in tree["profiles"].items()}
        manifest = IndexManifest(**tree)
        _require_counts(manifest)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UserError(_none(path)) from error
    return manifest


def _none(path: Path) -> str:
    return f"{path}: not the manifest of an index; give the folder that an index was built in"


def _of_format_1(tree: dict[str, Any]) -> dict[str, Any]:
    kept = ("format_version", "rows", "vectors", "duplicates", "statuses", "sources", "sha256")
    told = Profile(tree["profile_version"], tree["profile_digest"], tree["dimension"], weights=tree.get("weights"))
    return {name: tree[name] for name in kept} | {
        "parts": [{"rows": tree["rows"], "vectors": tree["vectors"]}],
        "profiles": {tree["profile"]: asdict(told)},
        "thumbnails": True,
        "not_looked_at": tree.get("not_looked_at"),
        "training_size": tree.get("training_size"),
    }


def _require_counts(manifest: IndexManifest) -> None:
    """Raise TypeError or ValueError where something is of another kind, or sums do not agree."""
    counts: list[object] = [manifest.rows, manifest.vectors, manifest.duplicates, *manifest.statuses.values()]
    counts += manifest.sources.values()
    counts += [n for told in manifest.profiles.values() for n in (told.version, told.dimension)]
    counts += [*(manifest.not_looked_at or {}).values(), manifest.training_size or 0]
    counts += [n for part in manifest.parts for n in (part.rows, part.vectors)]
    texts: list[object] = [*manifest.sha256.values()]
    texts += [text for told in manifest.profiles.values() for text in (told.digest, told.dtype)]
    texts += [text for told in manifest.profiles.values() for text in (told.weights or {}).values()]
    if not all(isinstance(n, int) and n >= 0 for n in counts) or not all(isinstance(text, str) for text in texts):
        raise TypeError
    sums = sum(part.rows for part in manifest.parts), sum(part.vectors for part in manifest.parts)
    if sums != (manifest.rows, manifest.vectors) or not manifest.profiles:
        raise ValueError
    for told in manifest.profiles.values():
        known = told.weights is None or {"file", "sha256", "vouched_by"} <= told.weights.keys()
        if told.dtype not in ("float32", "float16") or told.dimension < 1 or not known:
            raise ValueError
