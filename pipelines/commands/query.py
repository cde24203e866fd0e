"""`sharpaudit query`: SQL over the tables of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import click

from pipelines.commands.options import PATH, run_argument

Form = Literal["table", "csv", "json", "parquet"]


@click.command()
@run_argument
@click.argument("sql")
@click.option("--format", "form", type=click.Choice(get_args(Form)), default="table", show_default=True)
@click.option("--out", type=PATH, help="Write the answer there; parquet needs it.")
def query(run_folder: Path, sql: str, form: Form, out: Path | None) -> None:
    """Run one SQL statement, read-only, over the tables and views of RUN.

    \b
    Example: sharpaudit query runs/quickstart "select prompt, n_copies from findings order by n_copies desc"
    """
    from sharpaudit.errors import UserError
    from sharpaudit.tables.answers import parquet, render
    from sharpaudit.tables.query import query as run_query
    from sharpaudit.tables.query import table_of
    from sharpaudit.tables.reading import open_connection
    from sharpaudit.tables.records import export_file
    from sharpaudit.tables.runs import RunFolder

    if form == "parquet" and out is None:
        raise UserError("--format parquet writes a file: name it with --out FILE")
    with open_connection(RunFolder.open(run_folder.absolute())) as connection:
        if form == "parquet":
            data = parquet(table_of(connection, sql))
        else:
            data = render(run_query(connection, sql), form).encode()
    if out is None:
        click.echo(data, nl=False)
    else:
        export_file(out, data)
