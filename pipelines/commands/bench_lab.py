"""The commands of `sharpaudit bench` that measure on a lab."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pipelines.bench.lines import Line
from pipelines.commands.bench_options import finish, json_option, note, refuse_reason, why_option
from pipelines.commands.options import PATH, research, set_option
from sharpaudit.config import LAB
from sharpaudit.errors import UserError


@click.command()
@click.argument("source", type=PATH, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="test", show_default=True)
@click.option("--out", type=PATH, default=Path("runs/detection"), show_default=True, help="Keeps the scores.")
@click.option("--full", is_flag=True, help="16 single seeds in place of 4, where one evaluation serves all metrics.")
@click.option("--trajectory", is_flag=True, help="Published detectors over 50 steps instead, beside their own figures.")
@why_option
@json_option
@click.option("--figure", type=PATH, help="Draw the distributions of the main metrics there, as svg, png or pdf.")
@set_option
def detection(
    source: Path,
    split: str,
    out: Path,
    full: bool,
    trajectory: bool,
    why: str | None,
    json_path: Path | None,
    figure: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Every first-step metric on SOURCE: a split of a lab's folder, of the one that ships by default.

    SOURCE may also be a config whose positive controls are memorised and whose audited prompts are harmless, as in
    sd14_reference.toml. A second call scores nothing again. The table is also written beside the scores, as table.md
    and table.json.

    \b
    Example: sharpaudit bench detection --json detection.json
    """
    from pipelines.bench.detection import (
        GOALS,
        MINUTES,
        Configured,
        LabSplit,
        at_first_seed,
        bench_lines,
        detect,
        markdown,
        write,
    )
    from pipelines.bench.figures import distributions
    from pipelines.flow import signals
    from sharpaudit.config import load
    from sharpaudit.devices import hardware_in_words

    signals.install()
    if trajectory:
        return _trajectory(source, split, out, why, json_path)
    of_config, begun = source.suffix == ".toml", time.monotonic()
    refuse_reason(why, "development" if of_config else split)
    audited = Configured(load(source, overrides)) if of_config else LabSplit(source, split, overrides)
    kept = out.absolute() / (source.stem if of_config else split)
    found = detect(audited, kept, full=full)
    minutes = (time.monotonic() - begun) / 60
    write(found, kept)
    click.echo(f"{markdown(found)}\n{hardware_in_words()} {minutes:.1f} minutes, less where scores were there.")
    if figure:
        distributions(*at_first_seed(audited, kept), figure)
    note(source, found.cost, why, None if of_config or split != "test" else kept)
    # The goals are of the lab: another model has others.
    goals = {} if of_config else GOALS

    spent = Line("detection.minutes", minutes, "minutes", 1, goal=None if of_config else MINUTES[full], at_most=True)
    finish([*bench_lines(found, goals), spent], list(goals), json_path)


def _trajectory(folder: Path, split: str, out: Path, why: str | None, json_path: Path | None) -> None:
    from pipelines.bench.published import MINUTES, ROWS, bench_lines, markdown, trajectories, write
    from sharpaudit.devices import hardware_in_words

    if folder.suffix == ".toml":
        raise UserError(f"{folder}: --trajectory is of a lab's folder, whose prompts have labels; name one")
    refuse_reason(why, split)
    kept, begun = out.absolute() / split, time.monotonic()
    found = trajectories(folder, split, kept / "trajectories")
    minutes = (time.monotonic() - begun) / 60
    write(found, kept)
    click.echo(f"{markdown(found)}\n{hardware_in_words()} {minutes:.1f} minutes, less where trajectories were there.")
    note(folder, list(ROWS), why, kept if split == "test" else None)
    spent = Line("trajectory.minutes", minutes, "minutes", 1, goal=MINUTES, at_most=True)
    finish([*bench_lines(found), spent], [], json_path)


@click.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="test", show_default=True)
@why_option
@json_option
def cascade(folder: Path, split: str, why: str | None, json_path: Path | None) -> None:
    """What the gates of a cascade lose against its last tier on every prompt, on the lab FOLDER.

    On the development split several gates, to choose from; on the test split the default. Who shapes the cascade by
    what is seen there notes the look with --why: the lab's card lists all of them.

    \b
    Example: sharpaudit bench cascade --split development
    """
    from pipelines.bench.cascade import DEFAULT, METRICS, bench_lines, compare, markdown

    refuse_reason(why, split)
    results = list(compare(folder, split))
    click.echo(markdown(results), nl=False)
    note(folder, METRICS, why)
    finish(list(bench_lines(results)), [f"cascade.above_{100 * DEFAULT:g}.tpr1_difference_low"], json_path)


@click.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option("--seeds", type=click.IntRange(2), default=4, show_default=True, help="Noise draws.")
@why_option
@json_option
def screens(folder: Path, split: str, seeds: int, why: str | None, json_path: Path | None) -> None:
    """Rivals of residual_gap at the price of one to four evaluations, each held against it, on the lab FOLDER.

    \b
    Example: sharpaudit bench screens --split development
    """
    screens, screen_data = research("screens"), research("screen_data")
    refuse_reason(why, split)
    data, lines = screen_data.gather(folder, split, seeds), list[Line]()
    for kind in ("exact", "template"):
        found = list(screens.judge(data, kind))
        click.echo(f"{kind} plants\n\n{screens.markdown(found)}")
        lines += screens.bench_lines(found, kind)
    note(folder, ["residual_gap", *(metric.name for metric in screen_data.PROJECTED)], why)
    finish(lines, [], json_path)


@click.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True, help="Noise draws.")
@why_option
@json_option
def directions(folder: Path, split: str, seeds: int, why: str | None, json_path: Path | None) -> None:
    """How many directions harmless prompts move in, and what the number that "auto" takes costs, on the lab FOLDER.

    \b
    Example: sharpaudit bench directions
    """
    module = research("directions")
    refuse_reason(why, split)
    found = list(module.measure(folder, split, seeds))
    click.echo(module.markdown(found), nl=False)
    note(folder, ["residual_gap"], why)
    finish(list(module.bench_lines(found)), [], json_path)


@click.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option(
    "--emulated", is_flag=True, help="bfloat16 also on a CPU without it: half as fast or, on AVX2, never done."
)
@click.option("--simulate", is_flag=True, help="Also how often the rule passes equal and worse forms: minutes.")
@why_option
@json_option
def exactness(
    folder: Path, split: str, emulated: bool, simulate: bool, why: str | None, json_path: Path | None
) -> None:
    """Finite differences against forward mode, bfloat16 against float32, on the lab FOLDER.

    A metric is offered in bfloat16 if it is shown to be no worse by more than a margin; the table states it.

    \b
    Example: sharpaudit bench exactness
    """
    from pipelines.bench import noninferiority
    from pipelines.bench.exactness import bench_lines, markdown, precisions, steps
    from sharpaudit.devices import hardware_in_words

    refuse_reason(why, split)
    found, precise = steps(folder, split, emulated=emulated), precisions(folder, split, emulated=emulated)
    click.echo(f"{markdown(found, precise)}\n{hardware_in_words()}")
    simulated = list(noninferiority.simulate()) if simulate else []
    if simulated:
        click.echo(f"\n{noninferiority.markdown(simulated)}", nl=False)
    note(folder, ["sharpness", *(p.metric for p in precise)], why)
    lines = [*bench_lines(found, precise), *noninferiority.bench_lines(simulated)]
    needed = [f"exactness.fd_h{step.h:g}.correlation_low" for step in found if step.default and step.form == "fd"]
    finish(lines, needed, json_path)


@click.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option("--out", type=PATH, default=Path("runs/recombined"), show_default=True, help="Keeps the scores.")
@click.option("--candidates", type=click.IntRange(120), help="Of both uses, 5,999 by default: fewer see less.")
@json_option
def recombined(folder: Path, split: str, out: Path, candidates: int | None, json_path: Path | None) -> None:
    """Whether candidates of `sharpaudit calibration make` calibrate: the realised rate on the lab FOLDER.

    \b
    Example: sharpaudit bench recombined
    """
    from pipelines.bench.recombined import CALIBRATION, FIT, bench_lines, markdown, measure
    from pipelines.flow import signals

    signals.install()
    asked = candidates or FIT + CALIBRATION
    found = list(measure(folder, split, out.absolute() / f"{split}-{asked}", candidates=asked))
    click.echo(markdown(found), nl=False)
    finish(list(bench_lines(found)), [], json_path)


@click.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--only", "names", multiple=True, metavar="NAME", help="Only this figure; may be given again.")
@click.option("--out", type=PATH, default=Path("runs/figures"), show_default=True, help="Gets NAME.png and NAME.csv.")
@click.option("--work", type=PATH, default=Path("runs/geometry"), show_default=True, help="Keeps what takes long.")
@click.option("--few", type=click.IntRange(1), help="Of every group of prompts so many at most: a quick look.")
def figures(folder: Path, names: tuple[str, ...], out: Path, work: Path, few: int | None) -> None:
    """The paper's figures of curvature, from models of this repository and the lab FOLDER: pictures and their numbers.

    A second call goes on with what takes long. Names: plane, digits, spectra, traces, branches, identities,
    generalised, fisher-rao.

    \b
    Example: sharpaudit bench figures --only identities
    """
    from sharpaudit.errors import nearest

    drawing, known = research("geometry.drawing"), research("geometry.figures")
    for name in names:
        if name not in known.FIGURES:
            hint = nearest(name, list(known.FIGURES)) or f"; known are {', '.join(known.FIGURES)}"
            raise UserError(f"--only {name}: no figure has that name{hint}")
    asked = drawing.Asked(folder, work.absolute(), few)
    for name in known.FIGURES:
        if not names or name in names:
            known.make(name, asked, out.absolute())
            click.echo(f"{out / name}.png, {out / name}.csv")


@click.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option("--out", type=PATH, default=Path("runs/solvers"), show_default=True, help="Keeps each setting.")
@click.option("--at", multiple=True, metavar="SOLVER:STEPS", help="Only this beside ddim:25; may be given again.")
@why_option
@json_option
def solvers(folder: Path, split: str, out: Path, at: tuple[str, ...], why: str | None, json_path: Path | None) -> None:
    """At what solver and how few steps the copies of memorised prompts stay, on the lab FOLDER.

    A second call goes on with the settings that are missing.

    \b
    Example: sharpaudit bench solvers
    """
    from pipelines.bench.solvers import bench_lines, markdown, measure, settings

    refuse_reason(why, split)
    found = list(measure(folder, split, out.absolute() / split, settings(at)))
    click.echo(markdown(found), nl=False)
    note(folder, ["solvers"], why)
    finish(list(bench_lines(found)), [], json_path)
