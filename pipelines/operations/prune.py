"""`prune`: what the current tables of a run do not list is given up."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer

from sharpaudit.errors import UserError
from sharpaudit.evidence.seal import MANIFEST
from sharpaudit.evidence.sealing import resealed
from sharpaudit.tables.image_store import sweep_images
from sharpaudit.tables.lock import Guard, hold
from sharpaudit.tables.runs import UNSEALED, RunFolder
from sharpaudit.tables.schemas import Table
from sharpaudit.tables.shards import Manifest, TableFolder


@dataclass(frozen=True)
class Pruned:
    """What was dropped, or would be."""

    shards: int
    pictures: int
    bytes: int


def prune(
    root: Path, *, dry_run: bool = False, signer: Signer | None = None, say: Callable[[str], None] = lambda _: None
) -> Pruned:
    """Drop every shard and picture of a finished run that its current tables do not list, and seal it again.

    Raises UserError for a run that is not finished: what it has done is not listed yet.
    """
    RunFolder.open(root)
    if (root / UNSEALED).exists() or not (root / MANIFEST).exists():
        raise UserError(f"{root}: not finished; run the same command again, then prune")
    with hold(root, say) as driver:
        guard = Guard(root, driver.id)
        run = RunFolder(root, guard=guard)
        dropped, kept = _sorted(run)
        listed = {image for manifest in kept for image in manifest.images}
        pictures = {image for _, manifest in dropped for image in manifest.images} - listed
        size = sum(manifest.bytes for _, manifest in dropped) + sum((root / name).stat().st_size for name in pictures)
        if dropped and not dry_run:
            with resealed(root, signer=signer, guard=guard):
                _drop(run, dropped)
                sweep_images(root, listed)
    return Pruned(len(dropped), len(pictures), size)


def _sorted(run: RunFolder) -> tuple[list[tuple[TableFolder, Manifest]], list[Manifest]]:
    """Every shard that is not current, with its folder, and every one that is."""
    dropped, kept = [], []
    for folder in run.every_folder():
        now = folder.fingerprint == run.fingerprint(folder.table.stage)
        current = {manifest.shard for manifest in folder.current()} if now else set()
        for manifest in folder.manifests():
            if manifest.shard in current:
                kept.append(manifest)
            else:
                dropped.append((folder, manifest))
    return dropped, kept


def _drop(run: RunFolder, dropped: list[tuple[TableFolder, Manifest]]) -> None:
    """Whole folders of other fingerprints, and single shards of current ones."""
    others = [folder for table in run.tables() for folder in _others(run, table)]
    for folder in others:
        # Before its shards, so that no list names a shard that has gone.
        run.files.remove(folder / "table.json")
        run.files.sync_folder(folder)
    for shards, manifest in dropped:
        shards.forget(manifest)
    for folder in others:
        shutil.rmtree(folder)


def _others(run: RunFolder, table: Table) -> list[Path]:
    """The folders of a table at other fingerprints than the current one."""
    now = run.table(table).folder
    # By their form: a folder there may be that of another table.
    there = (folder for folder in sorted(now.parent.iterdir()) if re.fullmatch("[0-9a-f]{8}", folder.name))
    return [folder for folder in there if folder != now and (folder / "manifests").is_dir()]
