"""`sharpaudit bench`: what the project claims of itself, measured."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import set_option

FOLDER = click.Path(path_type=Path)


@click.group()
def bench() -> None:
    """Measure what the project claims of itself; exit 1 when a goal is not met."""


@bench.command()
@click.argument("folder", type=FOLDER)
@click.option("--split", type=click.Choice(["development", "test"]), default="test", show_default=True)
@click.option("--out", type=FOLDER, default=Path("runs/detection"), show_default=True, help="Keeps the scores.")
@click.option("--full", is_flag=True, help="16 single seeds in place of 4, where one evaluation serves all metrics.")
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
@set_option
def detection(
    folder: Path, split: str, out: Path, full: bool, json_path: Path | None, overrides: tuple[str, ...]
) -> None:
    """Every first-step metric on a split of the lab FOLDER. A second call scores nothing again.

    \b
    Example: sharpaudit bench detection emoji --json detection.json
    """
    from pipelines import signals
    from pipelines.bench.detection import GOALS, bench_lines, detect, markdown
    from pipelines.bench.lines import unmet, write_json

    signals.install()
    found = detect(folder, split, out.absolute() / split, full=full, overrides=overrides)
    click.echo(markdown(found), nl=False)
    lines = list(bench_lines(found))
    if json_path:
        write_json(json_path, lines)
    missed = unmet(lines, [f"residual_gap.n1.exact.{name}" for name in GOALS])
    for sentence in missed:
        click.echo(sentence, err=True)
    raise click.exceptions.Exit(1 if missed else 0)
