"""`sharpaudit bench`: what the project claims of itself, measured."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pipelines.bench.lines import Line
from pipelines.commands import bench_lab, bench_mitigation
from pipelines.commands.bench_options import finish, json_option
from pipelines.commands.options import PATH
from sharpaudit.config import LAB
from sharpaudit.errors import UserError

DRAWS = 200
"""Of a simulation, as its module has it; the docs' tables are made with so many."""
draws_option = click.option(
    "--draws", type=click.IntRange(8), default=DRAWS, show_default=True, help="Simulated of each case: fewer see less."
)


@click.group()
def bench() -> None:
    """Measure what the project claims of itself; exit 1 when a goal is not met."""


for command in (
    bench_lab.detection,
    bench_lab.cascade,
    bench_lab.screens,
    bench_lab.directions,
    bench_lab.exactness,
    bench_lab.recombined,
    bench_lab.solvers,
    bench_lab.figures,
    bench_mitigation.mitigation,
):
    bench.add_command(command)


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
    from sharpaudit.devices import hardware_in_words, usable_cores, use_threads

    use_threads(threads or usable_cores())
    begun = time.monotonic()
    found = measure(
        folder, sd1=sd1, compiled=compiled, rounds=rounds or ROUNDS, tell=lambda line: click.echo(line, err=True)
    )
    spent = Line("speed.minutes", (time.monotonic() - begun) / 60, "minutes", 1, goal=MINUTES, at_most=True)
    click.echo(f"{markdown(found)}\n{hardware_in_words()}")
    finish([*found.lines(), spent], needed(), json_path)


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
    from sharpaudit.devices import hardware_in_words

    found = measure(out.absolute() / f"rows-{rows}", rows)
    click.echo(f"{markdown(found)}\n{hardware_in_words()}")
    finish(list(bench_lines(found)), [], json_path)


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
    from sharpaudit.devices import hardware_in_words

    exact, alike = measure(out.absolute(), rows, near)
    click.echo(f"{markdown(exact, alike)}\n{hardware_in_words()}")
    finish(list(bench_lines(exact, alike)), [], json_path)


@bench.command()
@click.option(
    "--rows", type=click.IntRange(10_000, 4_000_000), default=1_000_000, show_default=True, help="Vectors in memory."
)
@click.option(
    "--streamed", type=click.IntRange(10_000), default=10_000_000, show_default=True, help="Vectors from the disk."
)
@click.option("--rounds", type=click.IntRange(1), default=6, show_default=True, help="Rounds that are timed.")
@click.option("--out", type=PATH, default=Path("runs/search"), show_default=True, help="Keeps the vectors.")
@json_option
def search(rows: int, streamed: int, rounds: int, out: Path, json_path: Path | None) -> None:
    """How fast the nearest of a million vectors are found, beside plain calls of faiss, and what approximation misses.

    Needs 16 GB of disk, 6 GB of memory and some 20 minutes on 2 cores. Nothing else should run beside it.

    \b
    Example: sharpaudit bench search --json search.json
    """
    from pipelines.bench.search import bench_lines, markdown, measure
    from sharpaudit.devices import hardware_in_words

    found = measure(out.absolute(), rows, streamed, rounds, lambda line: click.echo(line, err=True))
    click.echo(f"{markdown(found)}\n{hardware_in_words()}")
    finish(list(bench_lines(found)), [], json_path)


@bench.command()
@click.option("--pictures", type=click.IntRange(1), default=500, show_default=True, help="That are described.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Rounds that are timed.")
@click.option("--out", type=PATH, default=Path("runs/embedding"), show_default=True, help="Keeps pictures and weights.")
@json_option
def embedding(pictures: int, rounds: int, out: Path, json_path: Path | None) -> None:
    """How fast `index build` describes pictures, beside a bare loop over the same network.

    Some 10 minutes on 2 cores. Nothing else should run beside it.

    \b
    Example: sharpaudit bench embedding --json embedding.json
    """
    from pipelines.bench.embedding import bench_lines, markdown, measure
    from sharpaudit.devices import hardware_in_words

    found = measure(out.absolute(), pictures, rounds, lambda line: click.echo(line, err=True))
    click.echo(f"{markdown(found)}\n{hardware_in_words()}")
    finish(list(bench_lines(found)), [], json_path)


@bench.command()
@draws_option
@json_option
def decisions(draws: int, json_path: Path | None) -> None:
    """What decisions promise, simulated: false-positive and false-discovery rates, power, bounds on misses and matches.

    \b
    Example: sharpaudit bench decisions
    """
    from pipelines.bench import copying, decisions

    found = decisions.simulate(draws, decisions.CONTROL_DRAWS * draws // DRAWS)
    copies = copying.simulate(copying.DRAWS * draws // DRAWS)
    click.echo("\n".join([decisions.markdown(found), copying.markdown(copies)]), nl=False)
    finish([*decisions.bench_lines(found), *copying.bench_lines(copies)], [], json_path)


@bench.command()
@draws_option
@json_option
def families(draws: int, json_path: Path | None) -> None:
    """What flags claim where prompts are of families that move together, or of styles that nothing calibrates.

    \b
    Example: sharpaudit bench families
    """
    from pipelines.bench.families import bench_lines, markdown, simulate

    found = simulate(draws)
    click.echo(markdown(found), nl=False)
    finish(list(bench_lines(found)), [], json_path)


@bench.command()
@draws_option
@json_option
def intervals(draws: int, json_path: Path | None) -> None:
    """How often the 95% intervals of detector tables hold, simulated at the sizes of the tables.

    \b
    Example: sharpaudit bench intervals
    """
    from pipelines.bench.intervals import bench_lines, covered, markdown

    found = list(covered(draws))
    click.echo(markdown(found), nl=False)
    finish(list(bench_lines(found)), [], json_path)


@bench.command()
@click.option("--into", "docs", type=PATH, default=Path("docs"), show_default=True, help="The folder of the pages.")
@click.option("--only", "names", multiple=True, metavar="NAME", help="Only this table; may be given again.")
def tables(docs: Path, names: tuple[str, ...]) -> None:
    """Make the tables of the documentation anew, each by its own command, and put them where the pages show them.

    To be called in the root of the repository, in two to three hours with nothing beside it. Each page is replaced in
    one step; a table that fails or is interrupted stays as it was. NAME is what a page says between <!-- bench NAME -->
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
