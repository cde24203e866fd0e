"""`sharpaudit init`: example configs to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from pipelines.commands.options import PATH
from sharpaudit.errors import UserError


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
def init(folder: Path) -> None:
    """Write the example configs into DIR.

    \b
    Example: sharpaudit init audits && sharpaudit run audits/quickstart.toml --out runs/first
    """
    examples = [entry for entry in files("pipelines.examples").iterdir() if entry.name.endswith(".toml")]
    folder.mkdir(parents=True, exist_ok=True)
    taken = [entry.name for entry in examples if (folder / entry.name).exists()]
    if taken:
        raise UserError(f"{folder}: {', '.join(sorted(taken))} is there already; name another folder")
    for entry in sorted(examples, key=lambda e: e.name):
        (folder / entry.name).write_bytes(entry.read_bytes())
        click.echo(folder / entry.name)
