"""`sharpaudit spectrum`: the curvature of a model's learned density at a latent, with a prompt and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.commands.options import PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sharpaudit.spectra.hessian import Curvature

WHOLE = 1024
"""Latent elements up to which the whole matrix is made unless the ends are asked for."""


@click.command()
@click.argument("model", type=PATH)
@click.option("--prompt", required=True, help="What the model is asked for.")
@click.option("--step", type=click.IntRange(1), default=1, show_default=True, help="Where: before this sampling step.")
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True, help="Of a sample, by DDIM.")
@click.option("--guidance", type=float, default=5.0, show_default=True, help="Of the steps before.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Noise of the screen, by its number."
)
@click.option("--ends", type=click.IntRange(1), default=10, show_default=True, help="Eigenvalues to show of each end.")
@click.option("--whole/--no-whole", default=None, help=f"The whole matrix; by default up to {WHOLE:,} latent elements.")
@click.option("--probes", type=click.IntRange(2), default=8, show_default=True, help="Of the count, without --whole.")
@click.option("--lanczos", type=click.IntRange(1), default=40, show_default=True, help="Steps of each probe.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Latents an evaluation.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each Hessian, with all that was computed.")
def spectrum(
    model: Path,
    prompt: str,
    step: int,
    steps: int,
    guidance: float,
    seed: int,
    ends: int,
    whole: bool | None,
    probes: int,
    lanczos: int,
    device: str,
    batch_size: int,
    as_json: bool,
) -> None:
    """Eigenvalues of MODEL's Hessians where a sample of a prompt is before one of its steps.

    Of log p(x | prompt), of log p(x) without one, and of their difference, which is what the prompt adds. MODEL is the
    folder of a diffusers pipeline or a model.json. How many are not negative comes from the whole matrix, or from
    random probes with an interval.

    \b
    Example: sharpaudit spectrum models/sd --prompt "a red boat" --step 1 --no-whole
    """
    from sharpaudit.config import ModelConfig
    from sharpaudit.denoisers.load import load_denoiser
    from sharpaudit.seeds import screen_latent
    from sharpaudit.spectra.hessian import at_step

    section = {"path": str(model.absolute()), "device": device, "dtype": "float32", "batch_size": batch_size}
    denoiser = load_denoiser(ModelConfig.model_validate(section))
    x_T = screen_latent(0, seed, denoiser.latent_shape)
    found = at_step(denoiser, prompt, x_T, step, steps, guidance, batch_size)
    told = (
        _whole(found, ends) if (found.size <= WHOLE if whole is None else whole) else _few(found, ends, probes, lanczos)
    )
    level = denoiser.level(found.t)
    where = {"t": found.t, "a": level.a, "sigma": level.sigma, "latent": found.size}
    for line in told:
        click.echo(json.dumps(where | line) if as_json else _in_words(line))


def _whole(curvature: Curvature, k: int) -> Iterator[dict[str, Any]]:
    from sharpaudit.spectra.eigenvalues import every

    for branch, (matrix_DD, asymmetry) in curvature.matrices().items():
        values_D = every(matrix_DD)
        n = int((values_D >= 0).sum())
        yield {
            "hessian": branch,
            "smallest": values_D[:k].tolist(),
            "largest": values_D[::-1][:k].tolist(),
            "not_negative": [n, n, n],
            "asymmetry": asymmetry,
            "eigenvalues": values_D.tolist(),
        }


def _few(curvature: Curvature, k: int, probes: int, steps: int) -> Iterator[dict[str, Any]]:
    from functools import partial

    from sharpaudit.spectra.eigenvalues import density, ends, random_signs
    from sharpaudit.spectra.hessian import BRANCHES

    signs_PD = random_signs(1, probes, curvature.size)
    for branch in BRANCHES:
        product = partial(curvature.product, branch)
        low, high = ends(product, curvature.size, k)
        yield {
            "hessian": branch,
            "smallest": low.tolist(),
            "largest": high.tolist(),
            "not_negative": list(density(product, curvature.size, probes, min(steps, curvature.size)).count(0.0)),
            "asymmetry": curvature.asymmetry(branch, signs_PD),
        }


def _in_words(line: dict[str, Any]) -> str:
    n, low, high = line["not_negative"]
    counted = f"{n:,}" if low == high else f"about {n:,.0f} ({low:,.0f} to {high:,.0f})"
    smallest, largest = (" ".join(f"{value:.4g}" for value in line[name]) for name in ("smallest", "largest"))
    return (
        f"{line['hessian']}: {counted} eigenvalues are not negative; asymmetry {line['asymmetry']:.2g}\n"
        f"  largest  {largest}\n  smallest {smallest}"
    )
