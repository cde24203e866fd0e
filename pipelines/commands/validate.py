"""`sharpaudit validate`: would this audit run, and what would the night cost?"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import config_argument, limit_option, set_option, with_limit
from sharpaudit import config as configuration


@click.command()
@config_argument
@set_option
@limit_option
@click.option("--out", type=click.Path(path_type=Path), help="The run folder to come: its disk must have room.")
def validate(config: Path, overrides: tuple[str, ...], limit: int | None, out: Path | None) -> None:
    """Load everything that CONFIG names, take one prompt end to end, and print the plan of the night.

    \b
    Example: sharpaudit validate audit.toml
    """
    from pipelines.rehearsal import rehearse

    for line in rehearse(configuration.load(config, with_limit(overrides, limit)), out=out):
        click.echo(line)
