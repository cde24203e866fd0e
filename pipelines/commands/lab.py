"""`sharpaudit lab`: a small diffusion model with planted memorisation, from nothing to its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import PATH, research, run_argument

TRAININGS = {"model": "training", "clip": "clip"}
"""Module of pipelines/research/lab with the settings of each."""


@click.group()
def lab() -> None:
    """Build and examine a small model of which it is known what it has memorised."""


@lab.command()
@click.argument("out", type=PATH)
@click.option("--work", type=PATH, required=True, help="Keeps pictures and checkpoints; a second call goes on there.")
@click.option(
    "--part",
    type=click.Choice(list(TRAININGS)),
    default="model",
    show_default=True,
    help="The diffusion model, or the CLIP of its pictures and captions, by which alignment is told.",
)
@click.option("--miniature", is_flag=True, help="A model of two minutes, which learns little.")
@click.option("--prediction", type=click.Choice(["epsilon", "v_prediction"]), default="epsilon", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of torch.")
def train(out: Path, work: Path, part: str, miniature: bool, prediction: str, threads: int) -> None:
    """Train a model from nothing into the folder OUT: one to two hours on 2 cores, the CLIP in less than half of one.

    \b
    Example: sharpaudit lab train emoji --work work
    """
    import torch

    from sharpaudit.errors import UserError

    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder")
    if part == "clip" and prediction != "epsilon":
        raise UserError(f"--prediction {prediction}: the CLIP predicts no noise; leave it out")
    torch.set_num_threads(threads)
    trainingset, training = research("lab.trainingset"), research(f"lab.{TRAININGS[part]}")
    recipe = trainingset.MINIATURE if miniature else trainingset.Recipe()
    settings = training.MINIATURE if miniature else training.Training()
    if part == "clip":
        training.build(out, work, recipe, settings)
    else:
        research("lab.build").build(out, work, recipe, replace(settings, prediction=prediction))


@lab.command()
@click.argument("folder", type=PATH)
@click.option("--work", type=PATH, required=True, help="Keeps the generations; a second call goes on there.")
@click.option("--sheets", type=PATH, required=True, help="Gets contact sheets: memorised.jpg and disputed.jpg.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of torch.")
def label(folder: Path, work: Path, sheets: Path, threads: int) -> None:
    """Find out what FOLDER/model has memorised: truth.csv, generations.csv, prompts, references and contact sheets.

    \b
    Example: sharpaudit lab label emoji --work work --sheets sheets
    """
    import torch

    torch.set_num_threads(threads)
    for line in research("lab.publish").label_model(folder, work, sheets, click.echo):
        click.echo(json.dumps(line))


@lab.command()
@click.argument("out", type=PATH)
@click.option("--miniature", is_flag=True, help="Those of the model of two minutes.")
def pictures(out: Path, miniature: bool) -> None:
    """Write the whole training set, PNG files and captions.csv, into the new folder OUT.

    \b
    Example: sharpaudit lab pictures train && sharpaudit index build train --out whole --captions train/captions.csv
    """
    from sharpaudit.errors import UserError

    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder")
    trainingset = research("lab.trainingset")
    recipe = trainingset.MINIATURE if miniature else trainingset.Recipe()
    click.echo(f"{out}: {research('lab.publish').write_pictures(out, recipe):,} pictures")


@lab.command()
@click.argument("folder", type=PATH)
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option("--out", type=PATH, required=True, help="Keeps the scores; a second call goes on there.")
@click.option("--why", default="table of detectors", show_default=True, help="Noted beside a look at the test split.")
def detectors(folder: Path, split: str, out: Path, why: str) -> None:
    """Write the table of `sharpaudit bench detection --full` for a split of FOLDER beside its truth.

    Choices are made on the development split; the test split only reports, and every look at it is noted for the card.

    \b
    Example: sharpaudit lab detectors emoji --split development --out runs/detection
    """
    from pipelines.bench.detection import LabSplit, detect, markdown
    from pipelines.flow import signals
    from sharpaudit.lab.detectors import DETECTORS, log_touch
    from sharpaudit.tables.records import export_file

    signals.install()
    found = detect(LabSplit(folder, split), out.absolute() / split, full=True)
    export_file(folder / DETECTORS[split], f"{json.dumps(found.as_json(), indent=1)}\n".encode())
    if split == "test":
        log_touch(folder, list(found.cost), why)
    click.echo(markdown(found), nl=False)


@lab.command()
@click.argument("folder", type=PATH)
def card(folder: Path) -> None:
    """Write FOLDER/card.md from the files beside it.

    \b
    Example: sharpaudit lab card emoji
    """
    click.echo(research("lab.card").write_card(folder))


@lab.command()
@run_argument
@click.option("--lab", "folder", type=PATH, help="The lab that was audited, where it is not the one that ships.")
@click.option("--goals", is_flag=True, help="Fail where the audit does not show what the quickstart must show.")
@click.option("--markdown", is_flag=True, help="The figures as a table, without the findings that show another plant.")
def compare(run_folder: Path, folder: Path | None, goals: bool, markdown: bool) -> None:
    """Hold the audit RUN of a lab's prompts against what is known of them.

    \b
    Example: sharpaudit lab compare runs/quickstart
    """
    from sharpaudit.config import LAB
    from sharpaudit.lab.comparison import Audited, audited_by, compare, unmet
    from sharpaudit.tables.query import query, views_there
    from sharpaudit.tables.reading import open_connection
    from sharpaudit.tables.runs import RunFolder

    run = RunFolder.open(run_folder.absolute())
    with open_connection(run) as connection:
        audited = [Audited(*row) for row in query(connection, audited_by(views_there(connection))).rows]
    lines = compare(folder or LAB / "emoji", audited)
    if markdown:
        click.echo(as_table(lines), nl=False)
    else:
        for line in lines:
            click.echo(json.dumps(line))
    if goals and (failed := unmet(lines, run.settings()["triage"]["alpha"])):
        raise click.ClickException("; ".join(failed))


def as_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The figures of `compare` for people; one of nothing at all has no line."""
    from pipelines.bench.lines import table

    rows = [
        [
            line["figure"],
            f"{line['k']:,} of {line['n']:,}",
            f"{line['share']:.1%} ({line['low']:.1%} to {line['high']:.1%})",
        ]
        for line in lines
        if line.get("n")
    ]
    return table(["of the test split", "found", "share (95% interval)"], rows)
