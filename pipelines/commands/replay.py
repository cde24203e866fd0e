"""`sharpaudit replay`: make the pictures of one prompt again and compare them with the run's."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import run_argument


@click.command()
@run_argument
@click.argument("prompt_id")
def replay(run_folder: Path, prompt_id: str) -> None:
    """Generate and match the samples of PROMPT_ID again, with the model, seeds and index of RUN.

    \b
    Example: sharpaudit replay runs/quickstart 3510ae04f74dd0776f0676d3673bd802
    """
    from pipelines.operations.replay import replay_prompt

    again = replay_prompt(run_folder.absolute(), prompt_id)
    for line in again.lines:
        click.echo(line)
    raise click.exceptions.Exit(0 if again.same else 1)
