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
@click.option("--allow-unreadable", is_flag=True, help="Count folders that cannot be listed, instead of refusing them.")
@click.option(
    "--training-size",
    metavar="N",
    type=click.IntRange(1),
    help="Pictures that the model was trained on: the report says what part of them the index holds.",
)
def build(
    pictures: Path,
    out: Path,
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
    """Describe every picture under the folder PICTURES; links are followed.

    PNG, JPEG and WebP files are read. Every other picture is a rejected row of the index with its reason, and every
    other file is counted by its kind. With more rejected pictures than --max-rejected the index is written all the
    same, and the exit code is 3.

    \b
    Example: sharpaudit index build /data/train --out indexes/train --captions captions.csv
    """
    signals.install("nothing was written; the same command begins anew")
    from sharpaudit.embedders.base import embedder, notes
    from sharpaudit.embedders.weights import Shelf
    from sharpaudit.matches.build import build_index
    from sharpaudit.matches.training_pictures import pictures_in

    shelf = Shelf(weights, weights_sha256)
    for line in notes(embedder(profile, shelf)):
        click.echo(f"note: {line}")
    items = pictures_in(pictures, captions, allow_unreadable=allow_unreadable)
    made = build_index(out.absolute(), profile, items, training_size, shelf=shelf, batch_size=batch_size, device=device)
    for line in _told(out, made, profile):
        click.echo(line)
    unused = [name for name in ("metadata.csv", "metadata.jsonl") if captions is None and (pictures / name).is_file()]
    if unused:
        click.echo(f"{pictures / unused[0]} may hold captions: --captions {pictures / unused[0]} takes them in")
    if made.rejected_share > max_rejected:
        line = (
            f"{made.rejected_share:.2%} of the pictures were rejected, --max-rejected is {max_rejected:.2%}; "
            "the index is written and holds the others: use it so, or mend the pictures and build another"
        )
        click.echo(f"sharpaudit: {line}", err=True)
        raise click.exceptions.Exit(REJECTED)


def _told(out: Path, made: IndexSummary, profile: str) -> list[str]:
    """What became of the files, in lines."""
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
    if made.repeated:
        lines.append(f"{made.repeated:,} links or paths lead to folders that are read once already")
    lines += [f"rejected: {r.count:,} for {r.text} (such as {printable(r.example)})" for r in made.reasons]
    return lines
