"""Arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

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
