"""`sharpaudit run`: the whole audit, or what is left of it."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import (
    PATH,
    config_argument,
    excluding,
    key_option,
    settings_options,
    signer_of,
)
from pipelines.flow import signals
from sharpaudit import config as configuration


@click.command()
@config_argument
@click.option("--out", type=PATH, help="Run folder; runs/NAME of the config by default.")
@click.option("--update", is_flag=True, help="Redo what a changed configuration changes, after saying what that is.")
@click.option(
    "--exclude-calibration",
    "excluded",
    metavar="FILE",
    type=PATH,
    help="Calibration prompts that shall not calibrate, one id a line or as a query writes them: those with a copy.",
)
@click.option("--retry-failed", "retry", is_flag=True, help="Do shards with rows that failed again.")
@click.option("--repair", is_flag=True, help="Make shards again whose files are damaged, as `verify` names them.")
@click.option("--verify-index", is_flag=True, help="Hash also those files of the index that seem unchanged.")
@settings_options
@key_option
def run(
    config: Path,
    out: Path | None,
    update: bool,
    excluded: Path | None,
    retry: bool,
    repair: bool,
    verify_index: bool,
    overrides: tuple[str, ...],
    key: Path | None,
) -> None:
    """Run the audit of CONFIG; the same command resumes it.

    \b
    Example: sharpaudit run audit.toml --out runs/tonight --executor ray --workers 4 --deadline 07:00
    """
    from pipelines.audit import run_audit
    from pipelines.flow.outcome import closing, exit_code
    from sharpaudit.plugs import require
    from sharpaudit.tables.runs import RECORD, RunFolder

    signals.install()
    signer = signer_of(key)
    if out is not None and (out / RECORD).exists():
        # Before the configuration, which does not know a plug that is not here, nor whose it was.
        require(RunFolder(out.absolute()).foreign_plugs())
    loaded = configuration.load(config, excluding(overrides, excluded))
    folder = out or Path("runs") / loaded.name
    outcome = run_audit(
        loaded,
        folder.absolute(),
        update=update,
        retry=retry,
        repaired=repair,
        verify_index=verify_index,
        signer=signer,
    )
    click.echo(closing(outcome, folder))
    raise click.exceptions.Exit(exit_code(outcome, loaded))
