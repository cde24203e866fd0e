"""`sharpaudit bench`: what the project claims of itself, measured."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import click

from pipelines.bench.lines import Line, unmet, write_json
from pipelines.commands.options import PATH, research, set_option
from sharpaudit.config import LAB
from sharpaudit.errors import UserError

json_option = click.option(
    "--json", "json_path", type=PATH, help="Write {name, value, low, high, unit, n, goal, met} there."
)
why_option = click.option("--why", metavar="TEXT", help="Note this look at the test split in the lab's touches.json.")


@click.group()
def bench() -> None:
    """Measure what the project claims of itself; exit 1 when a goal is not met."""


@bench.command()
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
    from sharpaudit.denoisers.devices import hardware_in_words

    signals.install()
    if trajectory:
        return _trajectory(source, split, out, why, json_path)
    of_config, begun = source.suffix == ".toml", time.monotonic()
    _refuse_reason(why, "development" if of_config else split)
    audited = Configured(load(source, overrides)) if of_config else LabSplit(source, split, overrides)
    kept = out.absolute() / (source.stem if of_config else split)
    found = detect(audited, kept, full=full)
    minutes = (time.monotonic() - begun) / 60
    write(found, kept)
    click.echo(f"{markdown(found)}\n{hardware_in_words()} {minutes:.1f} minutes, less where scores were there.")
    if figure:
        distributions(*at_first_seed(audited, kept), figure)
    _note(source, found.cost, why)
    # The goals are of the lab: another model has others.
    goals = {} if of_config else GOALS

    spent = Line("detection.minutes", minutes, "minutes", 1, goal=None if of_config else MINUTES[full], at_most=True)
    _finish([*bench_lines(found, goals), spent], list(goals), json_path)


def _trajectory(folder: Path, split: str, out: Path, why: str | None, json_path: Path | None) -> None:
    from pipelines.bench.published import MINUTES, ROWS, bench_lines, markdown, trajectories, write
    from sharpaudit.denoisers.devices import hardware_in_words

    if folder.suffix == ".toml":
        raise UserError(f"{folder}: --trajectory is of a lab's folder, whose prompts have labels; name one")
    _refuse_reason(why, split)
    kept, begun = out.absolute() / split, time.monotonic()
    found = trajectories(folder, split, kept / "trajectories")
    minutes = (time.monotonic() - begun) / 60
    write(found, kept)
    click.echo(f"{markdown(found)}\n{hardware_in_words()} {minutes:.1f} minutes, less where trajectories were there.")
    _note(folder, list(ROWS), why)
    spent = Line("trajectory.minutes", minutes, "minutes", 1, goal=MINUTES, at_most=True)
    _finish([*bench_lines(found), spent], [], json_path)


@bench.command()
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

    _refuse_reason(why, split)
    results = list(compare(folder, split))
    click.echo(markdown(results), nl=False)
    _note(folder, METRICS, why)
    _finish(list(bench_lines(results)), [f"cascade.above_{100 * DEFAULT:g}.tpr1_difference_low"], json_path)


@bench.command()
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
    _refuse_reason(why, split)
    data, lines = screen_data.gather(folder, split, seeds), list[Line]()
    for kind in ("exact", "template"):
        found = list(screens.judge(data, kind))
        click.echo(f"{kind} plants\n\n{screens.markdown(found)}")
        lines += screens.bench_lines(found, kind)
    _note(folder, ["residual_gap", *(metric.name for metric in screen_data.PROJECTED)], why)
    _finish(lines, [], json_path)


@bench.command()
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
    _refuse_reason(why, split)
    found = list(module.measure(folder, split, seeds))
    click.echo(module.markdown(found), nl=False)
    _note(folder, ["residual_gap"], why)
    _finish(list(module.bench_lines(found)), [], json_path)


@bench.command()
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
    from sharpaudit.denoisers.devices import hardware_in_words

    _refuse_reason(why, split)
    found, precise = steps(folder, split, emulated=emulated), precisions(folder, split, emulated=emulated)
    click.echo(f"{markdown(found, precise)}\n{hardware_in_words()}")
    simulated = list(noninferiority.simulate()) if simulate else []
    if simulated:
        click.echo(f"\n{noninferiority.markdown(simulated)}", nl=False)
    _note(folder, ["sharpness", *(p.metric for p in precise)], why)
    lines = [*bench_lines(found, precise), *noninferiority.bench_lines(simulated)]
    _finish(lines, ["exactness.fd_h1.correlation_low"], json_path)


@bench.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--sd1/--no-sd1", default=True, show_default=True, help="Also a UNet of Stable Diffusion 1's size.")
@click.option(
    "--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler and a minute."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; all cores by default.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds that are timed, 6 by default: fewer say less.")
@json_option
def throughput(
    folder: Path, sd1: bool, compiled: bool, threads: int | None, rounds: int | None, json_path: Path | None
) -> None:
    """How many prompts a second, against released detectors' practice, on the lab FOLDER.

    Rows of one metric stand beside the practice at the same seeds; our own screen stands apart. Ratios of the same
    minutes on the same machine: 6 to 10 minutes on 2 cores. Nothing else should run beside it.

    \b
    Example: sharpaudit bench throughput --json throughput.json
    """

    from pipelines.bench.ratios import MINUTES, markdown, needed
    from pipelines.bench.throughput import measure
    from pipelines.bench.timing import ROUNDS
    from sharpaudit.denoisers.devices import hardware_in_words, usable_cores, use_threads

    use_threads(threads or usable_cores())
    begun = time.monotonic()
    found = measure(
        folder, sd1=sd1, compiled=compiled, rounds=rounds or ROUNDS, tell=lambda line: click.echo(line, err=True)
    )
    spent = Line("speed.minutes", (time.monotonic() - begun) / 60, "minutes", 1, goal=MINUTES, at_most=True)
    click.echo(f"{markdown(found)}\n{hardware_in_words()}")
    _finish([*found.lines(), spent], needed(), json_path)


@bench.command()
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
    _finish(list(bench_lines(found)), [], json_path)


@bench.command()
@click.option("--rows", type=click.IntRange(1), default=10_000_000, show_default=True, help="Rows of scores.")
@click.option("--out", type=PATH, default=Path("runs/sql"), show_default=True, help="Keeps the synthetic run.")
@json_option
def sql(rows: int, out: Path, json_path: Path | None) -> None:
    """How fast a synthetic run of ten million scores answers, and in how much memory its facts are built.

    A second call asks the run of the first again. Nothing else should run beside it.

    \b
    Example: sharpaudit bench sql --json sql.json
    """
    from pipelines.bench.sql import bench_lines, markdown, measure
    from sharpaudit.denoisers.devices import hardware_in_words

    found = measure(out.absolute() / f"rows-{rows}", rows)
    click.echo(f"{markdown(found)}\n{hardware_in_words()}")
    _finish(list(bench_lines(found)), [], json_path)


@bench.command()
@click.option("--rows", type=click.IntRange(100), default=10_000_000, show_default=True, help="Of exact duplicates.")
@click.option("--near", type=click.IntRange(100), default=1_000_000, show_default=True, help="Of near-duplicates.")
@click.option("--out", type=PATH, default=Path("runs/ingest"), show_default=True, help="Holds the runs meanwhile.")
@json_option
def ingest(rows: int, near: int, out: Path, json_path: Path | None) -> None:
    """In how much memory ten million prompts become a corpus, and how long near-duplicate families take.

    Needs some 10 GB of disk and half an hour.

    \b
    Example: sharpaudit bench ingest --json ingest.json
    """
    from pipelines.bench.ingest import bench_lines, markdown, measure
    from sharpaudit.denoisers.devices import hardware_in_words

    exact, alike = measure(out.absolute(), rows, near)
    click.echo(f"{markdown(exact, alike)}\n{hardware_in_words()}")
    _finish(list(bench_lines(exact, alike)), [], json_path)


@bench.command()
@json_option
def decisions(json_path: Path | None) -> None:
    """What decisions promise, simulated: false-positive and false-discovery rates, power, bounds on misses and matches.

    \b
    Example: sharpaudit bench decisions
    """
    from pipelines.bench import copying, decisions

    found, copies = decisions.simulate(), copying.simulate()
    click.echo("\n".join([decisions.markdown(found), copying.markdown(copies)]), nl=False)
    _finish([*decisions.bench_lines(found), *copying.bench_lines(copies)], [], json_path)


@bench.command()
@json_option
def families(json_path: Path | None) -> None:
    """What flags claim where prompts are of families that move together, or of styles that nothing calibrates.

    \b
    Example: sharpaudit bench families
    """
    from pipelines.bench.families import bench_lines, markdown, simulate

    found = simulate()
    click.echo(markdown(found), nl=False)
    _finish(list(bench_lines(found)), [], json_path)


@bench.command()
@json_option
def intervals(json_path: Path | None) -> None:
    """How often the 95% intervals of detector tables hold, simulated at the sizes of the tables.

    \b
    Example: sharpaudit bench intervals
    """
    from pipelines.bench.intervals import bench_lines, covered, markdown

    found = list(covered())
    click.echo(markdown(found), nl=False)
    _finish(list(bench_lines(found)), [], json_path)


@bench.command()
@click.option("--into", "docs", type=PATH, default=Path("docs"), show_default=True, help="The folder of the pages.")
@click.option("--only", "names", multiple=True, metavar="NAME", help="Only this table; may be given again.")
def tables(docs: Path, names: tuple[str, ...]) -> None:
    """Make the tables of the documentation anew, each by its own command, and put them where the pages show them.

    To be called in the root of the repository, in some two hours with nothing beside it. Each page is replaced in one
    step; a table that fails or is interrupted stays as it was. NAME is what a page says between <!-- bench NAME -->
    and <!-- end -->, or "card" for the card of the lab that ships, which is written as a whole.

    \b
    Example: sharpaudit bench tables --only cascade --only decisions
    """
    from pipelines.bench.tables import TABLES, remake
    from pipelines.flow import signals
    from sharpaudit.errors import nearest

    signals.install()
    for name in names:
        if name not in TABLES:
            hint = nearest(name, list(TABLES)) or f"; known are {', '.join(TABLES)}"
            raise UserError(f"--only {name}: no table has that name{hint}")
    chosen = [name for name in TABLES if not names or name in names]
    failed = list(remake(docs, chosen, lambda line: click.echo(line, err=True)))
    for sentence in failed:
        click.echo(sentence, err=True)
    raise click.exceptions.Exit(1 if failed else 0)


def _refuse_reason(why: str | None, split: str) -> None:
    if why and split != "test":
        raise UserError(f"--why {why!r}: looks at the test split are noted, not at {split}; leave --why out")


def _note(folder: Path, metrics: Iterable[str], why: str | None) -> None:
    """Note a look at the test split, where a reason is given; the table has been shown by now."""
    from sharpaudit.lab.detectors import log_touch

    if why:
        log_touch(folder, list(metrics), why)


def _finish(lines: list[Line], wanted: list[str], json_path: Path | None) -> NoReturn:
    """Write the lines, say every goal that is not met, and exit with 1 if there is one."""
    if json_path:
        write_json(json_path, lines)
    missed = unmet(lines, wanted)
    for sentence in missed:
        click.echo(sentence, err=True)
    raise click.exceptions.Exit(1 if missed else 0)
