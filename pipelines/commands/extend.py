"""`sharpaudit extend`: more prompts for an audit that is there."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import PATH, key_option, run_argument, settings_options, signer_of
from pipelines.flow import signals


@click.command()
@run_argument
@click.argument("files", nargs=-1, required=True, type=PATH)
@settings_options
@key_option
def extend(run_folder: Path, files: tuple[Path, ...], overrides: tuple[str, ...], key: Path | None) -> None:
    """Audit the prompts of FILES as well, in RUN and with its settings; what is there is not made again.

    Decisions are made anew over all prompts. A prompt whose family calibrates the run already comes too late and is
    counted as such. FILES stay part of the run: `sharpaudit run` with its config goes on with them.

    \b
    Example: sharpaudit extend runs/tonight more.csv --deadline 07:00
    """
    from pipelines.audit import run_audit
    from pipelines.flow.binding import require_own, with_audited
    from pipelines.flow.outcome import closing, exit_code
    from sharpaudit import config as configuration
    from sharpaudit.tables.runs import RunFolder

    signals.install()
    signer = signer_of(key)
    root = run_folder.absolute()
    run = RunFolder.open(root)
    require_own(run)
    require_own(run, run.config())
    config = configuration.override(run.config(), overrides)
    # The run's own paths are absolute; those that --set names start where the command is given.
    config = configuration.resolve_paths(config, Path.cwd())
    added = [str(file.absolute()) for file in files if str(file.absolute()) not in config.corpus.audit]
    outcome = run_audit(with_audited(config, added), root, extend=True, signer=signer)
    click.echo(closing(outcome, run_folder))
    raise click.exceptions.Exit(exit_code(outcome, config))
