"""Approximate structures of an index: built into it, opened with it, and held against their record.

search/approximate.py says what one is. Here is what ties it to its index: the digest of the vectors that it was made
of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sharpaudit.errors import UserError, printable
from sharpaudit.matches.attempt import published, remove_left
from sharpaudit.matches.index import Hashed, Identity, ReferenceIndex, identities, sha256_of
from sharpaudit.matches.manifest import MANIFEST, IndexManifest, folder_name, parse_manifest, read_manifest
from sharpaudit.matches.search.approximate import (
    RECORD,
    ApproximateSearch,
    Structure,
    described,
    read_structure,
)
from sharpaudit.matches.search.structures import AIM, Tell, build_structure
from sharpaudit.matches.search.vectors import Vectors
from sharpaudit.tables.files import Files, naming
from sharpaudit.tables.records import digest_of


@dataclass(frozen=True)
class OpenStructure:
    """index: its folder. digest: SHA-256 of its record. opened: what its files were then, by their paths within the
    index."""

    index: Path
    search: ApproximateSearch
    digest: str
    opened: dict[str, Identity]

    @property
    def described(self) -> str:
        """What it is and what it misses, for people."""
        return f"approximate, {described(self.search.structure)}"

    def require_unchanged(self) -> None:
        """Raise UserError where a file of it is no longer the one that was opened."""
        if identities(self.index, self.opened) != self.opened:
            raise UserError(
                f"{printable(str(self.index))}: its approximate structure changed in use; nothing was made with the "
                "new one: put the old one back and give the same command, or name a new folder with --out"
            )


def add_structure(
    path: Path, kind: str, profile: str | None = None, *, aim: float = AIM, threads: int = 1, tell: Tell = print
) -> Structure:
    """Build a structure into the index at `path`, whose digest stays the same. No embedder is needed.

    profile: over whose vectors, where the index has those of several. aim: recall@1 to be reached. Raises UserError for
    an index that was changed or is too small for any, and where it has one of that kind.
    """
    manifest = parse_manifest(path / MANIFEST, read_manifest(path))
    profile = _only(path, manifest, profile)
    out = _place(path, profile) / kind
    if out.exists():
        raise UserError(f"{printable(str(out))}: is there already; remove it, and give the same command again")
    names = manifest.vector_files(profile)
    before = identities(path, names)
    for name in names:
        if sha256_of(path / name) != manifest.sha256.get(name):
            raise UserError(f"{printable(str(path / name))}: changed or cut; build the index again")
    vectors = Vectors([path / name for name in names], manifest.profiles[profile].dimension)
    files = Files()
    files.make_folder(out.parent)
    remove_left(out)
    with published(out, files) as attempt, naming(attempt):
        of = _digest_of_vectors(manifest, profile)
        made = build_structure(attempt, kind, vectors, of, aim=aim, threads=threads, tell=tell)
        hashed = [replace(chunk, sha256=sha256_of(attempt / chunk.file)) for chunk in made.chunks]
        made = replace(made, chunks=hashed)
        files.write(attempt / RECORD, made.to_bytes())
        if identities(path, names) != before:
            raise UserError(f"{printable(str(path))}: changed while it was read; give the same command again")
    return made


def _only(path: Path, manifest: IndexManifest, profile: str | None) -> str:
    there = list(manifest.profiles)
    if (profile is None and len(there) > 1) or (profile is not None and profile not in there):
        asked = "" if profile is None else f"--profile {printable(profile)}: "
        raise UserError(f"{asked}{printable(str(path))} holds vectors of {', '.join(there)}; name one with --profile")
    return profile or there[0]


def open_structure(index: ReferenceIndex, kind: str, known: Hashed | None = None, threads: int = 1) -> OpenStructure:
    """The structure of that kind over the vectors of an open index, every file checked.

    known: as of `index.open_index`. Raises UserError where there is none, or it was made of other vectors or changed.
    """
    place = _place(index.path, index.embedder.name) / kind
    if not place.is_dir():
        there = ", ".join(sorted(path.name for path in kinds_of(index.path, index.embedder.name))) or "none"
        raise UserError(
            f'matches.search = "{kind}": the index {printable(str(index.path))} has no such structure over the vectors '
            f"of {printable(index.embedder.name)} (there is: {there}); build it with `sharpaudit index approximate`, "
            'or say "exact"'
        )
    told, digest = read_structure(place)
    if told.of != _digest_of_vectors(index.manifest, index.embedder.name):
        raise UserError(f"{printable(str(place))}: was made of other vectors; remove it and build it again")
    shas = {(place / chunk.file).relative_to(index.path).as_posix(): chunk.sha256 for chunk in told.chunks}
    record = (place / RECORD).relative_to(index.path).as_posix()
    before = identities(index.path, [record, *shas])
    hashed = known.files if known is not None and known.digest == index.digest else {}
    same = list(hashed.get(record, ())) == list(before[record])
    for name, sha256 in shas.items():
        if not (same and list(hashed.get(name, ())) == list(before[name])) and sha256_of(index.path / name) != sha256:
            raise UserError(f"{printable(str(index.path / name))}: changed or cut; remove its folder, build it again")
    search = ApproximateSearch(place, told, index.vectors, threads)
    if identities(index.path, before) != before:
        raise UserError(f"{printable(str(place))}: changed while it was opened; give the same command again")
    return OpenStructure(index.path, search, digest, before)


def kinds_of(index: Path, profile: str) -> list[Path]:
    """The folders of the structures over an embedder's vectors."""
    place = _place(index, profile)
    return sorted(path for path in place.iterdir() if not path.name.startswith(".")) if place.is_dir() else []


def structures_of(path: Path, manifest: IndexManifest) -> Iterator[tuple[str, Path]]:
    """The structures of the index at `path`: embedder and folder of each."""
    for profile in manifest.profiles:
        yield from ((profile, place) for place in kinds_of(path, profile))


def faults_of_structures(path: Path, manifest: IndexManifest) -> Iterator[str]:
    """A sentence for each thing about the structures of the index at `path` that is not as their records say."""
    for profile, place in structures_of(path, manifest):
        shown = place.relative_to(path).as_posix()
        try:
            told, _ = read_structure(place)
            if told.of != _digest_of_vectors(manifest, profile):
                yield f"{printable(shown)}: was made of other vectors"
            for chunk in told.chunks:
                if sha256_of(place / chunk.file) != chunk.sha256:
                    yield f"{printable(shown)}/{chunk.file}: changed or cut"
        except UserError as error:
            yield str(error)


def _place(index: Path, profile: str) -> Path:
    return index / "approximate" / folder_name(profile)


def _digest_of_vectors(manifest: IndexManifest, profile: str) -> str:
    """Of the files that hold an embedder's vectors."""
    return digest_of([manifest.sha256[name] for name in manifest.vector_files(profile)])
