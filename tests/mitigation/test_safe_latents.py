"""Noise for somebody else's pipeline: diffusers' own, of the same folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import UserError
from sharpaudit.mitigation import safe_latents
from sharpaudit.mitigation.base import Case, Mitigated, mitigate
from sharpaudit.mitigation.sail import Sail
from sharpaudit.seeds import sample_latents


def test_a_diffusers_pipeline_draws_from_them_what_we_draw(tiny: Denoiser, tiny_folder: Path) -> None:
    method = Sail(most_steps=3)
    latents = safe_latents(tiny_folder, "cat", n=2, method=method, device="cpu")
    assert (latents.dtype, latents.shape) == (torch.float32, (2, *tiny.latent_shape))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(["cat"] * 2, latents=latents, num_inference_steps=5, guidance_scale=5.0, output_type="np").images
    x_T = sample_latents(0, [("cat", 0), ("cat", 1)], tiny.latent_shape)
    ours = mitigate(method, Case(tiny, ["cat"] * 2, x_T, [0, 1], 5.0, 5), 2)
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, Mitigated)
        assert np.abs(one.picture / 255 - other).max() < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_in_half_precision_takes_them_in_its_own_dtype(tiny_folder: Path, dtype: torch.dtype) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    latents = safe_latents(tiny_folder, "cat", method=Sail(most_steps=1), device="cpu").to(pipeline.dtype)
    assert np.isfinite(pipeline("cat", latents=latents, num_inference_steps=2, output_type="np").images).all()


def test_more_than_a_batch_are_those_of_each_alone(tiny_folder: Path) -> None:
    method = Sail(most_steps=1)
    whole = safe_latents(tiny_folder, "cat", n=5, method=method, device="cpu", batch_size=2)
    assert whole.shape[0] == 5
    torch.testing.assert_close(whole[:1], safe_latents(tiny_folder, "cat", method=method, device="cpu"))


def test_noise_that_is_not_safe_is_not_given(tiny_folder: Path) -> None:
    with pytest.raises(UserError, match=r"picture 0: the noise did not come to the target, .* for 0, in 1 steps"):
        safe_latents(tiny_folder, "cat", method=Sail(target=0.0, most_steps=1), device="cpu")
    with pytest.raises(UserError, match="n = 0: ask for at least one"):
        safe_latents(tiny_folder, "cat", n=0)


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model there"):
        safe_latents(tmp_path, "cat")
