"""`sharpaudit index`: the training pictures that samples are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.commands.options import PATH
from pipelines.flow import signals

if TYPE_CHECKING:
    from sharpaudit.matches.build import IndexSummary

REJECTED = 3


@click.group()
def index() -> None:
    """Build the reference index of training pictures."""


@index.command()
@click.argument("pictures", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder of the new index.")
@click.option(
    "--layout",
    type=click.Choice(["folder", "webdataset", "parquet"]),
    default="folder",
    show_default=True,
    help="What the pictures are kept in: files, tar archives, tables.",
)
@click.option("--image-column", metavar="NAME", help="Of tables, where it is not clear which one holds the pictures.")
@click.option("--caption-column", metavar="NAME", help="Of tables; caption or text where nothing is said.")
@click.option("--profile", default="pixels-16", show_default=True, help="Embedder that describes the pictures.")
@click.option(
    "--batch-size",
    metavar="N",
    default=64,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="Pictures that it takes at a time.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--weights", type=PATH, help="Folder with the embedder's weights, for one that has some.")
@click.option(
    "--weights-sha256", metavar="HEX", multiple=True, help="Digest of weights that you vouch for; may be given again."
)
@click.option(
    "--captions",
    type=PATH,
    help="csv or jsonl with file and caption, or file_name and text as imagefolder has them.",
)
@click.option(
    "--max-rejected",
    metavar="SHARE",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Exit with 3 where more of the pictures than this are rejected.",
)
@click.option(
    "--allow-unreadable",
    is_flag=True,
    help="Count folders that cannot be listed, and archives that are damaged, instead of refusing them.",
)
@click.option(
    "--training-size",
    metavar="N",
    type=click.IntRange(1),
    help="Pictures that the model was trained on: the report says what part of them the index holds.",
)
def build(
    pictures: Path,
    out: Path,
    layout: str,
    image_column: str | None,
    caption_column: str | None,
    profile: str,
    batch_size: int,
    device: str,
    weights: Path | None,
    weights_sha256: tuple[str, ...],
    captions: Path | None,
    max_rejected: float,
    allow_unreadable: bool,
    training_size: int | None,
) -> None:
    """Describe every picture of PICTURES: a folder of files, or, by --layout, of archives or tables, or one of these.

    PNG, JPEG and WebP files are read. Every other picture is a rejected row of the index with its reason, and every
    other file is counted by its kind. With more rejected pictures than --max-rejected the index is written all the
    same, and the exit code is 3.

    \b
    Example: sharpaudit index build /data/train --out indexes/train --captions captions.csv
    """
    signals.install("nothing was written; the same command begins anew")
    from sharpaudit.embedders.base import embedder, notes
    from sharpaudit.embedders.weights import Shelf
    from sharpaudit.errors import UserError
    from sharpaudit.matches.build import build_index
    from sharpaudit.matches.sources.archives import pictures_of_archives
    from sharpaudit.matches.sources.folder import pictures_in
    from sharpaudit.matches.sources.parquet import pictures_of_tables

    shelf = Shelf(weights, weights_sha256)
    for line in notes(embedder(profile, shelf)):
        click.echo(f"note: {line}")
    if layout != "folder" and captions is not None:
        raise UserError(f"--captions: for files in a folder; of --layout {layout} captions stand beside the pictures")
    if layout != "parquet" and (image_column or caption_column):
        raise UserError("--image-column and --caption-column: for tables; add --layout parquet")
    if layout == "webdataset":
        items = pictures_of_archives(pictures, allow_unreadable=allow_unreadable)
    elif layout == "parquet":
        items = pictures_of_tables(pictures, image_column, caption_column)
    else:
        items = pictures_in(pictures, captions, allow_unreadable=allow_unreadable)
    made = build_index(out.absolute(), profile, items, training_size, shelf=shelf, batch_size=batch_size, device=device)
    for line in _told(out, made, profile, layout):
        click.echo(line)
    unused = [name for name in ("metadata.csv", "metadata.jsonl") if captions is None and (pictures / name).is_file()]
    if unused and layout == "folder":
        click.echo(f"{pictures / unused[0]} may hold captions: --captions {pictures / unused[0]} takes them in")
    if made.rejected_share > max_rejected:
        line = (
            f"{made.rejected_share:.2%} of the pictures were rejected, --max-rejected is {max_rejected:.2%}; "
            "the index is written and holds the others: use it so, or mend the pictures and build another"
        )
        click.echo(f"sharpaudit: {line}", err=True)
        raise click.exceptions.Exit(REJECTED)


def _told(out: Path, made: IndexSummary, profile: str, asked: str) -> list[str]:
    """What became of the files, in lines. asked: the layout."""
    from sharpaudit.errors import Status, printable

    def counted(counts: dict[str, int]) -> str:
        return ", ".join(f"{count:,} {printable(kind)}" for kind, count in counts.items()) or "none"

    rejected = {status: count for status, count in made.statuses.items() if status != Status.OK}
    lines = [f"removed what a terminated build had left: {printable(path)}" for path in made.removed]
    lines.append(
        f"{printable(str(out))}: {made.pictures:,} pictures, {made.duplicates:,} of them duplicates, "
        f"rejected: {counted(rejected)}; not looked at: {counted(made.not_looked_at)}; "
        f"profile {profile}, digest {made.digest[:16]}"
    )
    for suffix, layout in ((".tar", "webdataset"), (".tgz", "webdataset"), (".parquet", "parquet")):
        if asked == "folder" and suffix in made.not_looked_at:
            lines.append(f"{suffix} files may hold pictures: --layout {layout} reads them")
    if made.repeated:
        lines.append(f"{made.repeated:,} links or paths lead to folders that are read once already")
    lines += [f"rejected: {r.count:,} for {r.text} (such as {printable(r.example)})" for r in made.reasons]
    return lines
