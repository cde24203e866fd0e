"""`sharpaudit bench mitigation`."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.bench_options import finish, json_option, note, refuse_reason, why_option
from pipelines.commands.options import PATH
from sharpaudit.config import LAB
from sharpaudit.errors import UserError

FORMS = (".svg", ".png", ".pdf")


@click.command()
@click.argument("folder", type=PATH, default=LAB / "emoji")
@click.option("--split", type=click.Choice(["development", "test"]), default="test", show_default=True)
@click.option("--out", type=PATH, default=Path("runs/mitigation"), show_default=True, help="Keeps each setting.")
@click.option("--method", "methods", multiple=True, help="Only this; may be given again. All by default.")
@click.option("--alignment", default="open_clip:lab", show_default=True, help="Embedder of pictures and texts.")
@click.option("--weights", type=PATH, default=LAB / "weights", help="Its weights; by default those that ship.")
@click.option("--weights-sha256", "vouched", multiple=True, help="Of weights that you vouch for; may be given again.")
@click.option("--few", type=click.IntRange(2), help="Of each kind of prompts so many at most: a quick look.")
@why_option
@json_option
@click.option("--figure", type=PATH, help="Draw the curves there, as svg, png or pdf.")
def mitigation(
    folder: Path,
    split: str,
    out: Path,
    methods: tuple[str, ...],
    alignment: str,
    weights: Path,
    vouched: tuple[str, ...],
    few: int | None,
    why: str | None,
    json_path: Path | None,
    figure: Path | None,
) -> None:
    """What suppresses the copies of the lab FOLDER's memorised prompts, at what strength and what cost.

    Strengths are chosen on the development split; the test split is measured behind it. Hours on 2 cores; a second
    call goes on with what is missing.

    \b
    Example: sharpaudit bench mitigation --split development --method delay --method noise
    """
    from pipelines.bench.mitigation.drawing import Bench
    from pipelines.bench.mitigation.measuring import measure
    from pipelines.bench.mitigation.settings import CONTROL
    from pipelines.bench.mitigation.tables import bench_lines, draw, markdown
    from pipelines.flow import signals
    from sharpaudit.embedders.base import embedder
    from sharpaudit.embedders.weights import Shelf
    from sharpaudit.plugs import MITIGATIONS

    refuse_reason(why, split)
    signals.install()
    if figure and figure.suffix not in FORMS:
        raise UserError(f"--figure {figure}: write a name that ends with {' or '.join(FORMS)}")
    card = embedder(alignment, Shelf(weights, vouched))
    if not card.texts:
        raise UserError(f'--alignment "{alignment}": this embedder describes no texts; name one that does')
    bench = Bench(folder, out.absolute(), card)
    asked = [one for one in MITIGATIONS.of(methods or MITIGATIONS.ours()) if one.name != CONTROL.name]
    refused = {one.name: bench.refused(one.name) for one in asked}
    for name, refusal in refused.items():
        if refusal is not None:
            click.echo(f"{name}: {refusal}", err=True)

    names = [name for name, refusal in refused.items() if refusal is None]
    found = measure(bench, names, split, few, lambda line: click.echo(line, err=True))
    click.echo(markdown(found), nl=False)
    note(folder, ["mitigation"], why)
    if figure:
        draw(found.settings, figure)
    finish(list(bench_lines(found)), [], json_path)
