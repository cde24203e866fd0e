"""`sharpaudit index build`: units of a training set to shards, by one process or Ray's, and from these the index.

The shards lie in a hidden folder beside the index until it is whole. A build that was ended goes on there by the same
command; one of other settings is refused there. Who changes a picture meanwhile has its unit described again.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.flow.progress import Reporter
from pipelines.indexing.shards import (
    LAYOUTS,
    SETTINGS,
    SHARDS,
    UNITS,
    cards_of,
    fingerprint_of,
    layout_of,
    picture_worker,
    pieces,
)
from pipelines.stages.base import Work
from pipelines.workers import executor
from sharpaudit import plugs
from sharpaudit.config import RunConfig
from sharpaudit.embedders.base import Embedder
from sharpaudit.errors import TransientError, UserError, printable
from sharpaudit.matches.attempt import refuse_existing
from sharpaudit.matches.build import IndexSummary, write_index
from sharpaudit.matches.sources.base import Unit
from sharpaudit.matches.writing import Kept, Piece
from sharpaudit.plugs import EMBEDDERS
from sharpaudit.tables.files import IN_PROGRESS, Files
from sharpaudit.tables.lock import Driver, Guard, hold
from sharpaudit.tables.records import canonical, digest_of, replace_file
from sharpaudit.tables.shards import TableFolder, probe_links


@dataclass(frozen=True)
class Asked:
    """What is to be described, and how.

    layout, paths, options: see indexing/shards.py. profiles: names of embedders. weights, weights_sha256: see
    embedders/weights.py. batch_size: pictures that it takes at a time, on `device`.
    """

    layout: str
    paths: dict[str, str]
    options: dict[str, Any]
    profiles: tuple[str, ...]
    weights: str | None = None
    weights_sha256: tuple[str, ...] = ()
    batch_size: int = 64
    device: str = "auto"


def build(out: Path, asked: Asked, kept: Kept, run: RunConfig) -> IndexSummary:
    """Describe the pictures and publish them as the index `out`, which must not exist; go on with a build of it.

    Raises UserError, TransientError where units were set aside: the same call tries them again.
    """
    place = out.with_name(f".{out.name}-building{IN_PROGRESS}")
    if out.exists() and place.exists():
        raise UserError(
            f"{printable(str(out))}: exists already, and {printable(str(place))} holds what a build of it had "
            "described: remove that folder if the index is whole (sharpaudit index verify), or name another with --out"
        )
    refuse_existing(out)
    with described_units(place, asked, run) as (cards, found):
        if LAYOUTS[asked.layout].gives_vectors:
            kept = replace(kept, given=True, thumbnails=False)
        summary = write_index(out, cards, kept, lambda writer: writer.take(found))
    shutil.rmtree(place)
    return summary


@contextmanager
def described_units(place: Path, asked: Asked, run: RunConfig) -> Iterator[tuple[list[Embedder], Iterator[Piece]]]:
    """The embedders, and all that the units hold, described by them, from shards in `place`, which stay there."""
    told = _settings(asked)
    cards = cards_of(told)
    units = layout_of(told["source"]).units()  # refuses a place that holds nothing, before anything is written
    _require_same(place, told)
    Files().make_folder(place, 0o700)
    probe_links(place)
    with hold(place) as driver, Reporter(place, sys.stderr) as reporter:
        _require_same(place, told)
        fingerprint = fingerprint_of(cards, told["source"])
        replace_file(place / SETTINGS, canonical(told | {"fingerprint": fingerprint}))
        folder = TableFolder(place, SHARDS, fingerprint, guard=Guard(place, driver.id))
        folder.sweep()
        work = list(_listed(place, units))
        missing = [item for item in work if folder.manifest(item.shard) is None]
        if missing:
            _describe(place, run, driver, work, missing, reporter)
        yield cards, _read(folder, work, [card.dimension for card in cards])


def _listed(place: Path, units: Iterator[Unit]) -> Iterator[Work]:
    """The units as work; what they hold is kept in a file, since there may be millions of names."""
    with (place / UNITS).open("wb") as stream:
        for unit in units:
            digest = digest_of(unit.state)
            payload = {"at": stream.tell()}
            stream.write(canonical(unit.payload) + b"\n")
            yield Work("index", digest[:32], unit.pictures, digest, payload)


def _describe(
    place: Path, run: RunConfig, driver: Driver, work: list[Work], missing: list[Work], reporter: Reporter
) -> None:
    """Do what is missing. Raises TransientError for units that were set aside."""
    total = sum(item.rows for item in work)
    done = total - sum(item.rows for item in missing)
    with executor(place, run, driver, picture_worker) as at_work:
        lost = [r for r in reporter.watch("index", total, done, at_work(iter(missing))) if r.manifest is None]
    if lost:
        raise TransientError(
            f"{len(lost)} of {len(work)} units were set aside, the first because it {lost[0].reason}; "
            "what is described stays: the same command goes on"
        )


def _read(folder: TableFolder, work: list[Work], dimensions: Sequence[int]) -> Iterator[Piece]:
    """The shards, one after another. dimensions: of the embedders."""
    for item in work:
        manifest = folder.manifest(item.shard)
        if manifest is None:
            raise AssertionError(f"{item.shard}: not committed")
        yield from pieces(folder.read(manifest), dimensions)


def _settings(asked: Asked) -> dict[str, Any]:
    """What a build is bound to."""
    told = asdict(asked)
    source = {name: told.pop(name) for name in ("layout", "paths", "options")}
    kinds = [(EMBEDDERS, name.partition(":")[0]) for name in asked.profiles]
    return told | {"source": source, "plugs": plugs.foreign(kinds)}


FREE = ("batch_size", "device")
"""What may be another when a build goes on: it changes vectors by rounding at most."""


def _require_same(place: Path, told: dict[str, Any]) -> None:
    """Raise UserError where a build was begun in `place` with other settings."""
    try:
        there = json.loads((place / SETTINGS).read_bytes())
    except FileNotFoundError:
        return
    other = [name for name, value in told.items() if name not in FREE and _plain(value) != there.get(name)]
    if other:
        raise UserError(
            f"{printable(str(place))}: a build of this index was begun with other settings "
            f"({', '.join(other)}): give the same command as then, or remove that folder"
        )


def _plain(value: Any) -> Any:
    return json.loads(canonical(value))
