"""What a run gives up: shards that are no longer current, and those that are done again, failed or damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer

from pipelines.stages.base import Stage
from sharpaudit.errors import IntegrityError, Status, UserError
from sharpaudit.evidence.seal import MANIFEST
from sharpaudit.evidence.sealing import resealed
from sharpaudit.tables.lock import Guard, hold
from sharpaudit.tables.pictures import is_whole, sweep_images
from sharpaudit.tables.runs import UNSEALED, RunFolder
from sharpaudit.tables.schemas import Table
from sharpaudit.tables.shards import Manifest, TableFolder


@dataclass(frozen=True)
class Pruned:
    """What was dropped, or would be."""

    shards: int
    pictures: int
    bytes: int


def retry_failed(run: RunFolder, stages: Iterable[Stage], say: Callable[[str], None]) -> None:
    """Forget the shards that hold rows which failed, so that they are done again. Only the holder of the lock may.

    What is made of them is made again by itself, since its name holds their digests.
    """
    for table in (stage.table for stage in stages if stage.retried):
        folder = run.table(table)
        failed = [manifest for manifest in folder.manifests() if _failed(manifest)]
        for manifest in failed:
            folder.forget(manifest)
        if failed:
            rows, all_rows = sum(map(_failed, failed)), sum(manifest.rows for manifest in failed)
            say(f"{table.stage}: {rows:,} failed rows; the {all_rows:,} rows of their shards are done again")


def repair(run: RunFolder, say: Callable[[str], None]) -> None:
    """Forget the shards whose file or pictures are not what was committed, so that they are made again.

    Only the holder of the lock may. Raises UserError for a damaged corpus, which a run reads only once.
    """
    for table in run.tables():
        folder = run.table(table)
        for record in [*sorted(folder.manifests_folder.glob("*.json")), folder.folder / "table.json"]:
            damage = _damage(run, folder, record)
            if damage and table.stage == "ingest":
                raise UserError(f"{damage}; the corpus of a run is read once: begin a new run")
            if damage:
                run.guard()
                # Data that no manifest lists is swept before work begins.
                run.files.remove(record)
                run.files.sync_folder(record.parent)
                say(f"{table.stage}: {damage}; it is made again")


def _damage(run: RunFolder, folder: TableFolder, record: Path) -> str | None:
    """What is wrong with a shard or with the list of shards, by its record. Pictures that are not their own go."""
    try:
        manifest = folder.manifest(record.stem) if record.parent == folder.manifests_folder else folder.table_commit()
        if not isinstance(manifest, Manifest):
            return None
        folder.read(manifest)
    except IntegrityError as error:
        return str(error)
    spoiled = [image for image in manifest.images if not is_whole(run.root / image)]
    for image in spoiled:
        run.files.remove(run.root / image)
    return f"{run.root / spoiled[0]}: a picture is missing or was changed" if spoiled else None


def _failed(manifest: Manifest) -> int:
    """Rows that came to no result although an earlier stage gave them something to work on."""
    counts = {Status(name): n for name, n in manifest.statuses.items()}
    return sum(n for status, n in counts.items() if status.is_rejection and status is not Status.NO_SCORE)


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
    return [folder for folder in sorted(now.parent.iterdir()) if folder.is_dir() and folder != now]
