"""Arguments that several verbs share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sharpaudit.encoding import decoded
from sharpaudit.errors import UserError

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

config_argument = click.argument("config", type=click.Path(path_type=Path))
run_argument = click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a key of the config, such as triage.alpha=0.02.",
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="Audit only the first LIMIT rows of the corpus."
)


def with_limit(overrides: tuple[str, ...], limit: int | None) -> tuple[str, ...]:
    """The overrides, with --limit as the key it stands for."""
    return overrides if limit is None else (*overrides, f"run.limit={limit}")


def excluding(overrides: tuple[str, ...], path: Path | None) -> tuple[str, ...]:
    """The overrides, with the prompt ids in a file, one a line, as triage.exclude_calibration.

    Raises UserError for a file that cannot be read or holds no id.
    """
    if path is None:
        return overrides
    try:
        text = decoded(path.read_bytes(), f"--exclude-calibration {path}")
        ids = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--exclude-calibration {path}: {error}; name a text file with one prompt id a line") from error
    if not ids:
        raise UserError(f"--exclude-calibration {path}: no prompt id in it; write one a line, or leave the option out")
    # A JSON list of strings is a TOML list too.
    return (*overrides, f"triage.exclude_calibration={json.dumps(ids)}")


key_option = click.option(
    "--key",
    type=click.Path(path_type=Path),
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
