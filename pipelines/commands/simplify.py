"""`sharpaudit simplify`: the simplest text that makes the model copy what a finding copies."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipelines.commands.options import PATH, run_argument


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
    """Leave words of PROMPT_ID away for as long as the model of RUN still copies the same training picture.

    Says how often pictures copy with all of its words and with those that are left, and whether these stand among the
    captions of the index. Nothing of the run is changed.

    \b
    Example: sharpaudit simplify runs/quickstart 4fa190371341b36080e772639ccbd575 --out simplest.png
    """
    from pipelines.operations.simplify import simplify as search
    from pipelines.operations.simplify import strip, told
    from sharpaudit.errors import printable
    from sharpaudit.images import encode_png
    from sharpaudit.tables.records import export_file

    found = search(run_folder.absolute(), prompt_id, pictures, counted, most)
    facts = told(found)
    for name in ("prompt", "simplest"):
        one = facts[name]
        share = f"{one['copies']} of {one['pictures']} pictures copy ({one['low']:.0%} to {one['high']:.0%})"
        click.echo(f'"{printable(one["text"])}" ({one["words"]} words): {share}')
    click.echo(
        f"{facts['candidates_drawn']} candidates drawn, {facts['left_out_by_the_screen']} more left out by the screen; "
        + ("no single word can go" if facts["minimal"] else f"ended by --most {most}: words may be left to go")
    )
    held = facts["captions"]
    click.echo(
        f"of {held['total']:,} captions of the index {held['same']:,} are this text and {held['containing']:,} "
        "contain it" + "".join(f'\n  "{printable(caption)}"' for caption in held["examples"])
    )
    if json_path is not None:
        export_file(json_path, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    if out is not None:
        export_file(out, encode_png(strip(found)))
