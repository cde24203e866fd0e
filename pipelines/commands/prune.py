"""`sharpaudit prune`: give back the room of what a run no longer needs."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import key_option, run_argument, signer_of


@click.command()
@run_argument
@click.option("--dry-run", is_flag=True, help="Say what would go, and drop nothing.")
@key_option
def prune(run_folder: Path, dry_run: bool, key: Path | None) -> None:
    """Drop what the current tables of the finished RUN do not list: shards of earlier settings, and pictures that are
    no longer selected. Going back to those settings makes them again.

    \b
    Example: sharpaudit prune runs/tonight --dry-run
    """
    from pipelines.operations import prune as operation

    found = operation.prune(
        run_folder.absolute(), dry_run=dry_run, signer=signer_of(key), say=lambda line: click.echo(line, err=True)
    )
    done = "would go" if dry_run else "dropped"
    click.echo(f"{found.shards:,} shards and {found.pictures:,} pictures, {found.bytes:,} bytes, {done}")
