"""`sharpaudit simplify`: the simplest text that makes the model copy what a finding copies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import PATH, run_argument
from sharpaudit.errors import printable


@click.command()
@run_argument
@click.argument("prompt_id")
@click.option("--pictures", type=click.IntRange(1, 64), help="Of each candidate; as many as the run makes by default.")
@click.option(
    "--count", "counted", type=click.IntRange(1, 256), default=16, show_default=True, help="Pictures to tell."
)
@click.option("--most", type=click.IntRange(1), default=100, show_default=True, help="Candidates that are drawn.")
@click.option("--out", type=PATH, help="Gets a strip: the prompt's pictures, and below what is left draws; a PNG.")
@click.option("--json", "json_path", type=PATH, help="Gets what is printed, and how it was found.")
def simplify(
    run_folder: Path,
    prompt_id: str,
    pictures: int | None,
    counted: int,
    most: int,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """Leave words of PROMPT_ID away for as long as the model of RUN still copies one of the training pictures that it
    copies.

    Says how often further pictures copy with all of its words and with those that are left, and whether these stand
    among the captions of the index. Nothing of the run is changed.

    \b
    Example: sharpaudit simplify runs/quickstart 3510ae04f74dd0776f0676d3673bd802 --out simplest.png
    """
    from pipelines.operations.simplify import simplify as search
    from pipelines.operations.simplify import strip, told
    from sharpaudit.images import encode_png
    from sharpaudit.tables.records import export_file

    found = search(run_folder.absolute(), prompt_id, pictures, counted, most)
    facts = told(found)
    for line in _lines(facts, most):
        click.echo(line)
    if json_path is not None:
        export_file(json_path, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    if out is not None:
        export_file(out, encode_png(strip(found)))


def _lines(facts: dict[str, Any], most: int) -> Iterator[str]:
    """What was found, for people."""
    for one in (facts["prompt"], facts["simplest"]):
        share = f"{one['copies']} of {one['pictures']} further pictures copy ({one['low']:.0%} to {one['high']:.0%})"
        yield f'"{printable(one["text"])}" ({one["words"]} words): {share}'
    end = (
        f"without any single word none of {facts['pictures_of_a_candidate']} pictures copies"
        if facts["minimal"]
        else f"ended by --most {most}: words may be left to go"
    )
    yield f"{facts['candidates_drawn']} candidates drawn, {facts['put_off_by_the_screen']} put off by the screen; {end}"
    held = facts["captions"]
    if not held["total"]:
        yield "the index has no captions to hold this against"
        return
    yield (
        f"of {held['total']:,} captions of the index {held['same']:,} are this text, {held['containing']:,} contain it "
        f"and {held['holding']:,} have all of its words"
    )
    yield from (f'  "{printable(caption)}"' for caption in held["examples"])
