"""`sharpaudit index`: the training pictures that samples are compared with."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import PATH


@click.group()
def index() -> None:
    """Build the reference index of training pictures."""


@index.command()
@click.argument("pictures", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder of the new index.")
@click.option("--profile", default="pixels-16", show_default=True, help="Descriptor profile.")
@click.option("--captions", type=PATH, help="CSV with the columns file and caption.")
def build(pictures: Path, out: Path, profile: str, captions: Path | None) -> None:
    """Describe every picture under the folder PICTURES.

    \b
    Example: sharpaudit index build /data/train --out indexes/train --captions captions.csv
    """
    from sharpaudit.errors import Status
    from sharpaudit.matches.index import build_index, pictures_in

    made = build_index(out.absolute(), profile, pictures_in(pictures, captions))
    rejected = ", ".join(
        f"{count:,} {status}" for status, count in sorted(made.statuses.items()) if status != Status.OK
    )
    click.echo(
        f"{out}: {made.pictures:,} pictures, {made.duplicates:,} of them duplicates, "
        f"rejected: {rejected or 'none'}; profile {profile}, digest {made.digest[:16]}"
    )
