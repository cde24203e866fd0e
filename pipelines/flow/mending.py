"""Shards that are done again: those that hold rows which failed, and damaged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pipelines.stages.base import Stage
from sharpaudit.errors import IntegrityError, Status, UserError
from sharpaudit.tables.image_store import is_whole
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.shards import Manifest, TableFolder


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
    # These would be the same another time.
    final = (Status.NO_SCORE, Status.NOT_STEERABLE)
    return sum(n for status, n in counts.items() if status.is_rejection and status not in final)
