"""Arguments that several verbs share."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharpaudit.encoding import decoded
from sharpaudit.errors import UserError

if TYPE_CHECKING:
    from securesystemslib.signer import Signer


class UserPath(click.Path):
    """A path as people type it: the shell leaves the ~ of --out=~/x to us."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(super().convert(value, param, ctx)))
        with suppress(RuntimeError):  # the home of a user whom the system does not know: a name like any other
            return path.expanduser()
        return path


PATH = UserPath()
config_argument = click.argument("config", type=PATH)
run_argument = click.argument("run_folder", metavar="RUN", type=PATH)
SHORT_FORMS = {
    "executor": "run.executor",
    "workers": "run.workers",
    "gpus_per_worker": "run.num_gpus",
    "limit": "run.limit",
    "deadline": "run.deadline",
}
"""Keys of the config that change nightly, by the option that stands for each."""
set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a key of the config, such as triage.alpha=0.02.",
)


def settings_options(verb: Callable[..., None]) -> Callable[..., None]:
    """--set and the short forms, which reach the verb as its `overrides`. A short form wins: it comes last."""

    @set_option
    @click.option("--executor", type=click.Choice(["local", "ray"]), help="Who does the work: this process, or Ray.")
    @click.option("--workers", type=click.IntRange(1), help="Worker processes of Ray.")
    @click.option("--gpus-per-worker", type=click.FloatRange(0), help="GPU share of each; 0.5 puts two on one GPU.")
    @click.option("--limit", type=click.IntRange(1), help="Audit only the first LIMIT rows of each file of prompts.")
    @click.option("--deadline", metavar="TIME", help='Begin no more work then: "07:00", or "2026-11-26T07:00".')
    @wraps(verb)
    def with_overrides(*arguments: Any, overrides: tuple[str, ...], **options: Any) -> None:
        # A JSON string is a TOML string too.
        short = [
            f"{key}={json.dumps(value)}"
            for name, key in SHORT_FORMS.items()
            if (value := options.pop(name)) is not None
        ]
        verb(*arguments, overrides=(*overrides, *short), **options)

    return with_overrides


def excluding(overrides: tuple[str, ...], path: Path | None) -> tuple[str, ...]:
    """The overrides, with the prompt ids in a file as triage.exclude_calibration.

    The file has one id a line, or is a CSV with a column prompt_id, as `sharpaudit query --format csv` writes it.
    Raises UserError for a file that cannot be read or holds no id.
    """
    if path is None:
        return overrides
    try:
        text = decoded(path.read_bytes(), f"--exclude-calibration {path}")
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if any(field.strip() for field in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--exclude-calibration {path}: {error}; name a text file with one prompt id a line") from error
    head, column = (1, rows[0].index("prompt_id")) if rows and "prompt_id" in rows[0] else (0, 0)
    # A line that is too short counts as an id that no prompt has.
    ids = [row[column].strip() if column < len(row) else "" for row in rows[head:]]
    if not ids:
        raise UserError(f"--exclude-calibration {path}: no prompt id in it; write one a line, or leave the option out")
    # A JSON list of strings is a TOML list too.
    return (*overrides, f"triage.exclude_calibration={json.dumps(ids)}")


key_option = click.option(
    "--key",
    type=PATH,
    envvar="SHARPAUDIT_KEY",
    show_envvar=True,
    help="PEM file of the private key that signs the run; `sharpaudit key make` writes one.",
)


def passphrase() -> bytes | None:
    """Of a private key, from the environment."""
    from sharpaudit.evidence.keys import PASSPHRASE

    told = os.environ.get(PASSPHRASE)
    return told.encode() if told else None


def signer_of(key: Path | None) -> Signer | None:
    """What signs with the key in a file. Raises UserError where that holds none."""
    from sharpaudit.evidence.keys import read_signer

    return read_signer(key, passphrase()) if key else None


def research(name: str) -> Any:
    """A module of pipelines/research, which the wheel leaves out. Raises UserError that says how to get it."""
    try:
        return import_module(f"pipelines.research.{name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("pipelines.research"):
            raise
        raise UserError(
            "this command is for work on sharpaudit itself and is not in the installed package: give it in a clone of "
            "the repository, with the environment that `make .venv/.installed-dev` builds there"
        ) from error
