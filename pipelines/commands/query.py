"""`sharpaudit query`: SQL over the tables of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from pipelines.commands.options import run_argument


@click.command()
@run_argument
@click.argument("sql")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def query(run_folder: Path, sql: str, form: Literal["table", "csv", "json"]) -> None:
    """Run one SQL statement, read-only, over the tables and views of RUN.

    \b
    Example: sharpaudit query runs/quickstart "select prompt, n_copies from findings order by n_copies desc"
    """
    from pipelines.tables import open_connection
    from sharpaudit.tables.query import query as run_query
    from sharpaudit.tables.query import render
    from sharpaudit.tables.runs import RunFolder

    with open_connection(RunFolder.open(run_folder.absolute())) as connection:
        click.echo(render(run_query(connection, sql), form), nl=False)
