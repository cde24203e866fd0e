"""`sharpaudit bench`: what the project claims of itself, measured."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

from pipelines.bench.lines import Line, unmet, write_json
from pipelines.commands.options import set_option
from sharpaudit.config import LAB
from sharpaudit.errors import UserError

FOLDER = click.Path(path_type=Path)


@click.group()
def bench() -> None:
    """Measure what the project claims of itself; exit 1 when a goal is not met."""


@bench.command()
@click.argument("source", type=FOLDER, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="test", show_default=True)
@click.option("--out", type=FOLDER, default=Path("runs/detection"), show_default=True, help="Keeps the scores.")
@click.option("--full", is_flag=True, help="16 single seeds in place of 4, where one evaluation serves all metrics.")
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
@click.option("--figure", type=FOLDER, help="Draw the distributions of the main metrics there, as svg, png or pdf.")
@set_option
def detection(
    source: Path,
    split: str,
    out: Path,
    full: bool,
    json_path: Path | None,
    figure: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Every first-step metric on SOURCE: a split of a lab's folder, of the one that ships by default.

    SOURCE may also be a config whose positive controls are memorised and whose audited prompts are harmless, as in
    sd14_reference.toml. A second call scores nothing again.

    \b
    Example: sharpaudit bench detection --json detection.json
    """
    from pipelines import signals
    from pipelines.bench.detection import GOALS, Configured, LabSplit, at_first_seed, bench_lines, detect, markdown
    from pipelines.bench.figures import distributions
    from sharpaudit.config import load

    signals.install()
    of_config = source.suffix == ".toml"
    audited = Configured(load(source, overrides)) if of_config else LabSplit(source, split, overrides)
    kept = out.absolute() / (source.stem if of_config else split)
    found = detect(audited, kept, full=full)
    click.echo(markdown(found), nl=False)
    if figure:
        distributions(*at_first_seed(audited, kept), figure)
    # The goals are of the lab: another model has others.
    goals = {} if of_config else GOALS
    needed = [f"{metric}.n1.exact.{name}" for metric, names in goals.items() for name in names]
    _finish(list(bench_lines(found, goals)), needed, json_path)


@bench.command()
@click.argument("folder", type=FOLDER, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="test", show_default=True)
@click.option("--why", metavar="TEXT", help="Note this look at the test split with its reason in FOLDER/touches.json.")
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
def cascade(folder: Path, split: str, why: str | None, json_path: Path | None) -> None:
    """What the gates of a cascade lose against its last tier on every prompt, on the lab FOLDER.

    On the development split several gates, to choose from; on the test split the default. Who shapes the cascade by
    what is seen there notes the look with --why: the lab's card lists all of them.

    \b
    Example: sharpaudit bench cascade --split development
    """
    from pipelines.bench.cascade import DEFAULT, METRICS, bench_lines, compare, markdown
    from sharpaudit.lab.detectors import log_touch

    if why and split != "test":
        raise UserError(f"--why {why!r}: looks at the test split are noted, not at {split}; leave --why out")
    results = list(compare(folder, split))
    click.echo(markdown(results), nl=False)
    if why:
        log_touch(folder, METRICS, why)
    _finish(list(bench_lines(results)), [f"cascade.above_{100 * DEFAULT:g}.tpr1_difference_low"], json_path)


@bench.command()
@click.argument("folder", type=FOLDER, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option("--seeds", type=click.IntRange(2), default=4, show_default=True, help="Noise draws.")
def screens(folder: Path, split: str, seeds: int) -> None:
    """Rivals of residual_gap at the price of one to four evaluations, each held against it, on the lab FOLDER.

    \b
    Example: sharpaudit bench screens --split development
    """
    from pipelines.bench.gathering import gather
    from pipelines.bench.screens import judge, markdown

    data = gather(folder, split, seeds)
    for kind in ("exact", "template"):
        click.echo(f"{kind} plants\n\n{markdown(list(judge(data, kind)))}")


@bench.command()
@click.argument("folder", type=FOLDER, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option(
    "--emulated", is_flag=True, help="bfloat16 also on a CPU without it: half as fast or, on AVX2, never done."
)
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
def exactness(folder: Path, split: str, emulated: bool, json_path: Path | None) -> None:
    """Finite differences against forward mode, bfloat16 against float32, on the lab FOLDER.

    \b
    Example: sharpaudit bench exactness
    """
    from pipelines.bench.exactness import bench_lines, markdown, precisions, steps

    found, precise = steps(folder, split), precisions(folder, split, emulated=emulated)
    click.echo(markdown(found, precise), nl=False)
    _finish(list(bench_lines(found, precise)), ["exactness.fd_h1.correlation"], json_path)


@bench.command()
@click.argument("folder", type=FOLDER, default=LAB / "emoji")
@click.option("--sd1/--no-sd1", default=True, show_default=True, help="Also a UNet of Stable Diffusion 1's size.")
@click.option(
    "--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler and a minute."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; all cores by default.")
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
def throughput(folder: Path, sd1: bool, compiled: bool, threads: int | None, json_path: Path | None) -> None:
    """How many prompts a second, against released detectors' practice, on the lab FOLDER.

    Ratios of the same minutes on the same machine. Nothing else should run beside it.

    \b
    Example: sharpaudit bench throughput --json throughput.json
    """
    import os

    from pipelines.bench.throughput import markdown, measure, needed
    from sharpaudit.denoisers.devices import use_threads

    use_threads(threads or os.cpu_count() or 1)
    found = measure(folder, sd1=sd1, compiled=compiled)
    click.echo(markdown(found), nl=False)
    _finish(found.lines, needed(found, sd1=sd1), json_path)


@bench.command()
@click.argument("folder", type=FOLDER, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="development", show_default=True)
@click.option("--out", type=FOLDER, default=Path("runs/recombined"), show_default=True, help="Keeps the scores.")
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
def recombined(folder: Path, split: str, out: Path, json_path: Path | None) -> None:
    """Whether candidates of `sharpaudit calibration make` calibrate: the realised rate on the lab FOLDER.

    \b
    Example: sharpaudit bench recombined
    """
    from pipelines import signals
    from pipelines.bench.recombined import bench_lines, markdown, measure

    signals.install()
    found = list(measure(folder, split, out.absolute() / split))
    click.echo(markdown(found), nl=False)
    _finish(list(bench_lines(found)), [], json_path)


@bench.command()
@click.option("--rows", type=click.IntRange(1), default=10_000_000, show_default=True, help="Rows of scores.")
@click.option("--out", type=FOLDER, default=Path("runs/sql"), show_default=True, help="Keeps the synthetic run.")
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
def sql(rows: int, out: Path, json_path: Path | None) -> None:
    """How fast a synthetic run of ten million scores answers, and in how much memory its facts are built.

    A second call asks the run of the first again. Nothing else should run beside it.

    \b
    Example: sharpaudit bench sql --json sql.json
    """
    from pipelines.bench.sql import bench_lines, markdown, measure

    found = measure(out.absolute() / f"rows-{rows}", rows)
    click.echo(markdown(found), nl=False)
    _finish(list(bench_lines(found)), [], json_path)


@bench.command()
@click.option("--rows", type=click.IntRange(100), default=10_000_000, show_default=True, help="Of exact duplicates.")
@click.option("--near", type=click.IntRange(100), default=1_000_000, show_default=True, help="Of near-duplicates.")
@click.option("--out", type=FOLDER, default=Path("runs/ingest"), show_default=True, help="Holds the runs meanwhile.")
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
def ingest(rows: int, near: int, out: Path, json_path: Path | None) -> None:
    """In how much memory ten million prompts become a corpus, and how long near-duplicate families take.

    Needs some 10 GB of disk and half an hour.

    \b
    Example: sharpaudit bench ingest --json ingest.json
    """
    from pipelines.bench.ingest import bench_lines, markdown, measure

    exact, alike = measure(out.absolute(), rows, near)
    click.echo(markdown(exact, alike), nl=False)
    _finish(list(bench_lines(exact, alike)), [], json_path)


@bench.command()
@click.option("--json", "json_path", type=FOLDER, help="Write {name, value, low, high, unit, n, goal, met} there.")
def decisions(json_path: Path | None) -> None:
    """What decisions promise, simulated: false-positive and false-discovery rates, power, the bound on misses.

    \b
    Example: sharpaudit bench decisions
    """
    from pipelines.bench.decisions import bench_lines, markdown, simulate

    found = simulate()
    click.echo(markdown(found), nl=False)
    _finish(list(bench_lines(found)), [], json_path)


def _finish(lines: list[Line], wanted: list[str], json_path: Path | None) -> NoReturn:
    """Write the lines, say every goal that is not met, and exit with 1 if there is one."""
    if json_path:
        write_json(json_path, lines)
    missed = unmet(lines, wanted)
    for sentence in missed:
        click.echo(sentence, err=True)
    raise click.exceptions.Exit(1 if missed else 0)
