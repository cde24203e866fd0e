"""What the commands of `sharpaudit bench` share: options, looks at the test split, how they end."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import click

from pipelines.bench.lines import Line, unmet, write_json
from pipelines.commands.options import PATH
from sharpaudit.errors import UserError

json_option = click.option(
    "--json", "json_path", type=PATH, help="Write {name, value, low, high, unit, n, goal, met} there."
)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
why_option = click.option("--why", metavar="TEXT", help="Note this look at the test split in the lab's touches.json.")


def refuse_reason(why: str | None, split: str) -> None:
    if why and split != "test":
        raise UserError(f"--why {why!r}: looks at the test split are noted, not at {split}; leave --why out")


def note(folder: Path, metrics: Iterable[str], why: str | None, beside: Path | None = None) -> None:
    """Note a look at the test split in the lab's folder, where a reason is given and it can be written to.

    beside: the folder of a table that the look made, where it is noted in any case.
    """
    from sharpaudit.lab.detectors import log_touch

    if beside is not None:
        log_touch(beside, list(metrics), why or "no reason was given")
    if why:
        try:
            log_touch(folder, list(metrics), why)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            click.echo(f"{folder} cannot be written to: the look at its test split is not noted there", err=True)


def finish(lines: list[Line], wanted: list[str], json_path: Path | None) -> NoReturn:
    """Write the lines, say every goal that is not met, and exit with 1 if there is one."""
    if json_path:
        write_json(json_path, lines)
    missed = unmet(lines, wanted)
    for sentence in missed:
        click.echo(sentence, err=True)
    raise click.exceptions.Exit(1 if missed else 0)
