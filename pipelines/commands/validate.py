"""`sharpaudit validate`: would this audit run, and what would the night cost?"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import PATH, config_argument, settings_options
from sharpaudit import config as configuration


@click.command()
@config_argument
@settings_options
@click.option("--out", type=PATH, help="The run folder to come: its disk must have room.")
def validate(config: Path, overrides: tuple[str, ...], out: Path | None) -> None:
    """Load everything that CONFIG names, take one prompt end to end, and print the plan of the night.

    \b
    Example: sharpaudit validate audit.toml --executor ray --workers 4 --gpus-per-worker 0.5
    """
    from pipelines.operations.validate import validate

    for line in validate(configuration.load(config, overrides), out=out):
        click.echo(line)
