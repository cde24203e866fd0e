"""Recorded attention is what the layer itself computes, and recording changes no bit of the prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from sharpaudit.denoisers.attention import LAYER, cross_attention_layers
from sharpaudit.denoisers.diffusion import DiffusionDenoiser
from sharpaudit.plugs import METRICS
from sharpaudit.scores.screen import ScreenConfig, screen, unconditional_predictions
from sharpaudit.seeds import latents, screen_latent

PROMPTS = ["cat", "a longer text of many tokens", ""]


class Kept(AttnProcessor):
    """The library's processor that writes its probabilities out; they stay here."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        scores = attn.get_attention_scores

        def kept(*given):
            self.probabilities = scores(*given)
            return self.probabilities

        attn.get_attention_scores = kept
        try:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        finally:
            del attn.get_attention_scores


@pytest.fixture(scope="module")
def model(folders):
    return DiffusionDenoiser(folders["epsilon"], torch.device("cpu"), torch.float32)


@pytest.fixture
def setting(model):
    x = latents([("test", i) for i in range(len(PROMPTS))], model.latent_shape)
    return x, model.encode(PROMPTS)


def test_the_map_is_the_layers_own(model, setting):
    x, conditioning = setting
    with torch.no_grad():
        recorded = model.predict(x, 981, conditioning, record_attention=True).attention
        layer = cross_attention_layers(model._unet)[LAYER]
        before, keeping = layer.processor, Kept()
        layer.set_processor(keeping)
        try:
            model.predict(x, 981, conditioning)
        finally:
            layer.set_processor(before)
    own = keeping.probabilities.unflatten(0, (len(PROMPTS), layer.heads)).mean(dim=(1, 2))
    assert recorded.shape == (len(PROMPTS), model._tokenizer.max_length)
    torch.testing.assert_close(recorded, own, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(recorded.sum(dim=1), torch.ones(len(PROMPTS)))
    assert (recorded[0] - recorded[1]).abs().max() > 1e-4


def test_recording_changes_no_bit_and_ends(model, setting):
    x, conditioning = setting
    with torch.no_grad():
        plain = model.predict(x, 981, conditioning)
        recorded = model.predict(x, 981, conditioning, record_attention=True)
    assert torch.equal(plain.x0_hat, recorded.x0_hat)
    assert plain.attention is None
    assert not any(layer._forward_pre_hooks for layer in cross_attention_layers(model._unet))


def test_layers_come_in_the_order_of_the_forward_pass(model, setting):
    x, conditioning = setting
    layers, seen = cross_attention_layers(model._unet), []
    handles = [layer.register_forward_pre_hook(lambda module, args: seen.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            model.predict(x, 981, conditioning)
    finally:
        for handle in handles:
            handle.remove()
    assert len(layers) > LAYER
    assert seen == layers


def test_the_screen_reads_it_from_the_evaluation_that_it_makes_anyway(model):
    config = ScreenConfig(2, 0, 1.0, 2)
    known = unconditional_predictions(model, config)
    calls, predict = [], model.predict

    def counting(x, *rest, **options):
        calls.append(len(x))
        return predict(x, *rest, **options)

    found = []
    for names in (("attention_entropy", "noise_gap"), ("noise_gap", "attention_entropy")):
        calls.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "predict", counting)
            rows = screen(model, PROMPTS, known, {}, config, METRICS.of(names))
        assert sum(calls) == len(PROMPTS) * config.n_seeds
        found.append([row.seed_values for row in rows])
    assert found[0] == found[1]
    with torch.no_grad():
        x = screen_latent(0, 1, model.latent_shape).expand(2, *model.latent_shape).contiguous()
        direct = model.predict(x, 981, model.encode(PROMPTS[:2]), record_attention=True).attention
    entropy = -(direct * direct.log()).sum(dim=1)
    np.testing.assert_allclose([row["attention_entropy"][1] for row in found[0][:2]], entropy, rtol=1e-5)


def test_low_precision_attention_is_computed_in_float32(folders, model, setting):
    x, conditioning = setting
    half = DiffusionDenoiser(folders["epsilon"], torch.device("cpu"), torch.bfloat16)
    with torch.no_grad():
        exact = model.predict(x, 981, conditioning, record_attention=True).attention
        low = half.predict(x, 981, half.encode(PROMPTS), record_attention=True).attention
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=1e-3)
