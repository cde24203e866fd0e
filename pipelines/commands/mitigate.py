"""`sharpaudit mitigate`: pictures of a prompt as the model draws them, and with a method that suppresses copies."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipelines.commands.options import PATH


@click.command()
@click.option("--model", type=PATH, required=True, help="Folder of a diffusers pipeline, or a model.json.")
@click.option("--prompt", required=True, help="What the model is asked for.")
@click.option("--method", "name", default="sail", show_default=True, help="Of mitigation, by its name.")
@click.option("--harmless", type=PATH, help="Prompts, a line each: sail and embedding stop below the median of theirs.")
@click.option("--pictures", type=click.IntRange(1, 64), default=4, show_default=True, help="Of each kind.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise.")
@click.option("--steps", type=click.IntRange(2), default=25, show_default=True, help="Of a picture, by DDIM.")
@click.option("--guidance", type=float, default=5.0, show_default=True)
@click.option("--out", type=PATH, default=Path("mitigated.png"), show_default=True, help="Gets the strip, a PNG.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Pictures at a time.")
def mitigate(
    model: Path,
    prompt: str,
    name: str,
    harmless: Path | None,
    pictures: int,
    seed: int,
    steps: int,
    guidance: float,
    out: Path,
    device: str,
    batch_size: int,
) -> None:
    """Before and after: pictures of a prompt, and from the same noise those that a method makes instead.

    The upper row of the strip is unmitigated. A line of JSON for each picture says what the method took, in
    evaluations of the network, and whether it came to its target. What suppresses does not remove: the weights stay.

    \b
    Example: sharpaudit mitigate --model models/sd --prompt "a red boat" --method sail --out boat.png
    """
    from pipelines.operations.mitigate import before_and_after, harmless_prompts, target_of
    from sharpaudit.config import ModelConfig
    from sharpaudit.denoisers.load import load_denoiser
    from sharpaudit.errors import UserError
    from sharpaudit.images import encode_png
    from sharpaudit.mitigation.base import Case
    from sharpaudit.plugs import MITIGATIONS
    from sharpaudit.seeds import sample_latents
    from sharpaudit.tables.records import export_file

    chosen = MITIGATIONS[name]
    if not prompt.strip():
        raise UserError("--prompt is empty, which is no prompt at all: say what the model is asked for")
    given = None if harmless is None else harmless_prompts(harmless)
    config = ModelConfig.model_validate({"path": str(model), "device": device, "dtype": "float32"})
    denoiser = load_denoiser(config)
    x_T = sample_latents(seed, [(prompt, i) for i in range(pictures)], denoiser.latent_shape)
    case = Case(denoiser, [prompt] * pictures, x_T, list(range(pictures)), guidance, steps, seed=seed)
    refused = chosen.method.refusal(denoiser)
    if refused is not None:
        raise UserError(refused)
    target = None if given is None else target_of(chosen.method, case, given, batch_size)
    strip, told = before_and_after(chosen.aimed(target).method, case, batch_size)
    export_file(out, encode_png(strip))
    for line in told:
        click.echo(json.dumps(line))
    click.echo(f"{out}: above as the model draws them, below by {name}")
