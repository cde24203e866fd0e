"""`sharpaudit bench mitigation`."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.bench.lines import Line
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
    from pipelines.bench.mitigation import drawing
    from pipelines.bench.mitigation.choice import chosen, tried_further
    from pipelines.bench.mitigation.settings import CONTROL, Rung, Setting, rungs
    from pipelines.bench.mitigation.tables import Attacked, bench_lines, draw, markdown
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
    bench = drawing.Bench(folder, out.absolute(), card)
    asked = [one for one in MITIGATIONS.of(methods or MITIGATIONS.ours()) if one.name != CONTROL.name]
    refused = {one.name: bench.refused(one.name) for one in asked}
    for name, refusal in refused.items():
        if refusal is not None:
            click.echo(f"{name}: {refusal}", err=True)

    def told(rung: Rung, of: str, pictures: int, kinds: tuple[str, ...] = tuple(drawing.KINDS)) -> Setting:
        sizes = {kind: min(size, few or size) * (kind in kinds) for kind, size in drawing.SIZES[of].items()}
        setting = bench.setting(rung, bench.prompts(of, sizes), pictures)
        click.echo(f"{of}: {rung.name} {rung.setting}: {len(setting.copied())} copy", err=True)
        return setting

    if not any(refusal is None for refusal in refused.values()):
        raise UserError("no method is left that this model can be steered by; name another by --method")
    drawn = {(rung.name, rung.strength): rung for rung in (CONTROL, *rungs([n for n in refused if refused[n] is None]))}
    found = [told(rung, "development", drawing.PICTURES) for rung in drawn.values()]
    best = chosen(found)
    more, attacked, lines = list[Setting](), list[Attacked](), list[Line]()
    if split == "test":
        found = [told(rung, "test", drawing.PICTURES) for rung in drawn.values()]
        if not found[0].copied():
            raise UserError(f"{folder}: no exactly memorised test prompt copies in {drawing.PICTURES} pictures")
        tried = [drawn[one.method, one.strength] for one in (found[0], *tried_further(best))]
        more = [told(rung, "test", drawing.MANY, ("exact",)) for rung in tried]
        if bench.unattackable is not None:
            click.echo(bench.unattackable, err=True)
        else:
            targets, controls = more[0].copied(), bench.controls("test", drawing.CONTROLS)
            for rung, one in zip(tried, more, strict=True):
                # Without a method every prompt that copies is attacked: what the attack does by itself.
                own = one.suppressed(more[0]) if rung is not CONTROL else targets.keys()
                towards = {prompt: row for prompt, row in targets.items() if prompt in own}
                attacked.append(Attacked(one, bench.attacked(rung, towards), bench.attacked(rung, controls)))
        lines = list(bench_lines(found, more, attacked))
    click.echo(markdown(found, {name: setting.strength for name, setting in best.items()}, more, attacked), nl=False)
    note(folder, ["mitigation"], why)
    if figure:
        draw(found, figure)
    finish(lines, [], json_path)
