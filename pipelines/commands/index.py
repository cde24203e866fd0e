"""`sharpaudit index`: the training pictures that samples are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.commands.index_options import asked_of, describing
from pipelines.commands.options import PATH
from pipelines.flow import signals

if TYPE_CHECKING:
    from sharpaudit.matches.build import IndexSummary
    from sharpaudit.matches.manifest import Profile

REJECTED = 3


@click.group()
def index() -> None:
    """Build the reference index of training pictures, and look at one."""


@index.command()
@click.argument("pictures", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder of the new index.")
@click.option(
    "--profile",
    "profiles",
    metavar="NAME",
    multiple=True,
    default=["pixels-16"],
    show_default=True,
    help="Embedder that describes the pictures; given again, another describes them too.",
)
@click.option(
    "--captions",
    type=PATH,
    help="csv or jsonl with file and caption, or file_name and text as imagefolder has them.",
)
@click.option(
    "--max-rejected",
    metavar="SHARE",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Exit with 3 where more of the pictures than this are rejected.",
)
@click.option(
    "--thumbnails/--no-thumbnails",
    default=True,
    help="Small pictures for the report; without them the index may go to who must not see any.",
)
@click.option(
    "--training-size",
    metavar="N",
    type=click.IntRange(1),
    help="Pictures that the model was trained on: the report says what part of them the index holds.",
)
@describing
def build(
    pictures: Path,
    out: Path,
    profiles: tuple[str, ...],
    max_rejected: float,
    thumbnails: bool,
    training_size: int | None,
    **given: Any,
) -> None:
    """Describe every picture of PICTURES: a folder of files, or, by --layout, of archives or tables, or one of these.

    PNG, JPEG and WebP files are read. Every other picture is a rejected row of the index with its reason, and every
    other file is counted by its kind. With more rejected pictures than --max-rejected the index is written all the
    same, and the exit code is 3.

    \b
    Example: sharpaudit index build /data/train --out indexes/train --captions captions.csv
    """
    signals.install("what is described stays; the same command goes on")
    from pipelines.indexing.build import build as build_index
    from sharpaudit.matches.writing import Kept

    asked, run = asked_of(pictures, profiles, given)
    made = build_index(out.absolute(), asked, Kept(given["dtype"], thumbnails, training_size), run)
    for line in _told(out, made, profiles, given["layout"]):
        click.echo(line)
    unused = [name for name in ("metadata.csv", "metadata.jsonl") if (pictures / name).is_file()]
    if unused and given["captions"] is None and given["layout"] == "folder":
        click.echo(f"{pictures / unused[0]} may hold captions: --captions {pictures / unused[0]} takes them in")
    if made.rejected_share > max_rejected:
        line = (
            f"{made.rejected_share:.2%} of the pictures were rejected, --max-rejected is {max_rejected:.2%}; "
            "the index is written and holds the others: use it so, or mend the pictures and build another"
        )
        click.echo(f"sharpaudit: {line}", err=True)
        raise click.exceptions.Exit(REJECTED)


def _told(out: Path, made: IndexSummary, profiles: Sequence[str], asked: str) -> list[str]:
    """What became of the files, in lines. asked: the layout."""
    from sharpaudit.errors import Status, printable

    rejected = {status: count for status, count in made.statuses.items() if status != Status.OK}
    lines = [f"removed what a terminated build had left: {printable(path)}" for path in made.removed]
    lines.append(
        f"{printable(str(out))}: {made.pictures:,} pictures, {made.duplicates:,} of them duplicates, "
        f"rejected: {_counted(rejected)}; not looked at: {_counted(made.not_looked_at)}; "
        f"{'profiles' if len(profiles) > 1 else 'profile'} {', '.join(profiles)}, digest {made.digest[:16]}"
    )
    for suffix, layout in ((".tar", "webdataset"), (".tgz", "webdataset"), (".parquet", "parquet")):
        if asked == "folder" and suffix in made.not_looked_at:
            lines.append(f"{suffix} files may hold pictures: --layout {layout} reads them")
    if made.scaled:
        lines.append(f"{made.scaled:,} vectors were not of length 1 and were scaled to it")
    if made.repeated:
        lines.append(f"{made.repeated:,} links or paths lead to folders that are read once already")
    lines += [f"rejected: {r.count:,} for {printable(r.text)} (such as {printable(r.example)})" for r in made.reasons]
    return lines


@index.command()
@click.argument("place", metavar="INDEX", type=PATH)
@click.argument("pictures", type=PATH)
@click.option("--profile", required=True, metavar="NAME", help="Embedder whose vectors are added.")
@describing
def add(place: Path, pictures: Path, profile: str, **given: Any) -> None:
    """Add the vectors of a further embedder to INDEX, of the PICTURES that it was built from.

    \b
    Example: sharpaudit index add indexes/train /data/train --profile sscd-disc-mixup-320 --weights weights
    """
    signals.install("what is described stays; the same command goes on")
    from pipelines.indexing.adding import add as add_profile

    if given["layout"] == "embeddings":
        raise click.UsageError("--layout embeddings: an index knows its references by pictures; build one of vectors")
    asked, run = asked_of(pictures, (profile,), given)
    digest = add_profile(place.absolute(), asked, run, given["dtype"])
    click.echo(f"{place}: holds vectors of {profile} too, digest {digest[:16]}")


@index.command()
@click.argument("place", metavar="INDEX", type=PATH)
@click.option("--kind", required=True, type=click.Choice(["fp16", "sq8", "ivf-sq8", "ivf-pq"]), help="See the docs.")
@click.option("--profile", metavar="NAME", help="Over whose vectors, of an index that has those of several embedders.")
@click.option(
    "--recall",
    metavar="SHARE",
    default=0.99,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Of nearest references that an ivf kind is to find: so many lists are looked through.",
)
@click.option("--threads", type=click.IntRange(1), help="All cores by default.")
def approximate(place: Path, kind: str, profile: str | None, recall: float, threads: int | None) -> None:
    """Build a structure into INDEX that searches tens of millions of references approximately, and measure its recall.

    An audit uses it with matches.search; its similarities are exact, but what it does not find is missed. The index
    stays as it is, and so does its digest.

    \b
    Example: sharpaudit index approximate indexes/train --kind ivf-sq8
    """
    from sharpaudit.devices import usable_cores
    from sharpaudit.matches.approximation import add_structure
    from sharpaudit.matches.search.approximate import described

    made = add_structure(
        place.absolute(), kind, profile, aim=recall, threads=threads or usable_cores(), tell=_on_stderr
    )
    click.echo(f"{place}: {described(made)}")
    if made.recall.found < recall * made.recall.n:
        click.echo(f"note: that is less than --recall {recall:g}; another kind finds more", err=True)


def _on_stderr(line: str) -> None:
    click.echo(line, err=True)


@index.command()
@click.argument("place", metavar="INDEX", type=PATH)
def info(place: Path) -> None:
    """What an index holds and how it was made, from its manifest alone.

    \b
    Example: sharpaudit index info indexes/train
    """
    from sharpaudit.errors import Status, printable
    from sharpaudit.images import sha256_hex
    from sharpaudit.matches.approximation import structures_of
    from sharpaudit.matches.manifest import MANIFEST, parse_manifest, read_manifest
    from sharpaudit.matches.search.approximate import described, read_structure

    data = read_manifest(place)
    manifest = parse_manifest(place / MANIFEST, data)
    rejected = {status: n for status, n in manifest.statuses.items() if status != Status.OK}
    click.echo(f"digest {sha256_hex(data)}, format {manifest.format_version}, {_many(len(manifest.parts), 'part')}")
    click.echo(f"{manifest.vectors:,} references, {manifest.duplicates:,} duplicates; rejected: {_counted(rejected)}")
    if manifest.not_looked_at is not None:
        click.echo(f"not looked at: {_counted(manifest.not_looked_at)}")
    if manifest.training_size is not None:
        click.echo(f"training set: {manifest.training_size:,} pictures, as whoever built it says")
    click.echo(f"sources: {_counted(manifest.sources)}")
    click.echo(f"pictures: {'thumbnails' if manifest.thumbnails else 'none'}")
    for name, told in manifest.profiles.items():
        weights = ""
        if told.weights is not None:
            words = {key: printable(value) for key, value in told.weights.items()}
            weights = ", weights {file}, SHA-256 {sha256}, vouched for by {vouched_by}".format(**words)
        click.echo(
            f"profile {printable(name)} version {told.version}: {told.dimension} x {told.dtype}{weights}{_given(told)}"
        )
    for name, folder in structures_of(place, manifest):
        click.echo(f"approximate search by {printable(name)}: {described(read_structure(folder)[0])}")


@index.command()
@click.argument("place", metavar="INDEX", type=PATH)
def verify(place: Path) -> None:
    """Whether every file of an index is what its manifest says, and holds what it counts. Exits with 1 where not.

    \b
    Example: sharpaudit index verify indexes/train
    """
    from sharpaudit.matches.checking import faults_of

    faults = list(faults_of(place))
    for fault in faults:
        click.echo(fault)
    click.echo(f"{place}: {_many(len(faults), 'fault')}" if faults else f"{place}: whole")
    if faults:
        raise click.exceptions.Exit(1)


def _given(told: Profile) -> str:
    return ", made by somebody else and taken as they were given" if told.given else ""


def _counted(counts: Mapping[str, int]) -> str:
    from sharpaudit.errors import printable

    return ", ".join(f"{count:,} {printable(kind)}" for kind, count in counts.items()) or "none"


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"
