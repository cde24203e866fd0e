"""Recorded attention is what the layer itself computes, and recording changes no bit of the prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from sharpaudit.denoisers.attention import _size_of, cross_attention_layers
from sharpaudit.denoisers.base import SCREENED_LAYER, AttentionRequest
from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser
from sharpaudit.denoisers.sampling import DDIM, Guided, follow, times
from sharpaudit.errors import UserError
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


def probabilities(model, x, conditioning, layer):
    """The library's own (B, H, S, L) of a layer."""
    before, keeping = layer.processor, Kept()
    layer.set_processor(keeping)
    try:
        model.predict(x, 981, conditioning)
    finally:
        layer.set_processor(before)
    return keeping.probabilities.unflatten(0, (len(x), layer.heads))


def test_the_map_is_the_layers_own(model, setting):
    x, conditioning = setting
    name = model.attention_layers[SCREENED_LAYER]
    with torch.no_grad():
        attention = model.predict(x, 981, conditioning, record=AttentionRequest()).attention
        own = probabilities(model, x, conditioning, cross_attention_layers(model._unet)[name]).mean(dim=(1, 2))
    assert list(attention) == [name]
    recorded = attention[name]
    assert recorded.shape == (len(PROMPTS), model._tokenizer.max_length)
    torch.testing.assert_close(recorded, own, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(recorded.sum(dim=1), torch.ones(len(PROMPTS)))
    assert (recorded[0] - recorded[1]).abs().max() > 1e-4


def test_the_default_has_the_bits_that_it_always_had(model, setting):
    """The formula written out, on what the layer is given."""
    x, conditioning = setting
    layer, seen = list(cross_attention_layers(model._unet).values())[SCREENED_LAYER], []

    def before(module, args, kwargs):
        query, key = module.to_q(args[0]), module.to_k(kwargs["encoder_hidden_states"])
        query, key = (z.unflatten(-1, (module.heads, -1)).transpose(1, 2).float() for z in (query, key))
        seen.append((query @ key.transpose(2, 3) * module.scale).softmax(dim=-1).mean(dim=(1, 2)))

    handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    with torch.no_grad():
        (recorded,) = model.predict(x, 981, conditioning, record=AttentionRequest()).attention.values()
    handle.remove()
    assert torch.equal(recorded, seen[0])


@pytest.mark.parametrize("number", range(-1, 4))
def test_every_layer_can_be_asked_for_by_number_and_name_and_pixel_by_pixel(model, setting, number):
    x, conditioning = setting
    name = model.attention_layers[number]
    rows = (2, 0)
    with torch.no_grad():
        own = probabilities(model, x, conditioning, cross_attention_layers(model._unet)[name]).mean(dim=1)
        mean, named, some, maps, some_maps = (
            model.predict(x, 981, conditioning, record=AttentionRequest(*asked)).attention[name]
            for asked in (((number,),), ((name,),), ((name,), False, rows), ((number,), True), ((name,), True, rows))
        )
    assert torch.equal(mean, named)
    assert maps.shape[:2] == mean.shape
    assert maps.shape[2] == maps.shape[3] == round(own.shape[1] ** 0.5)
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), own, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones_like(maps[:, 0]))
    torch.testing.assert_close(some, mean[list(rows)], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(some_maps, maps[list(rows)], rtol=1e-5, atol=1e-7)


def test_several_layers_in_one_evaluation(model, setting):
    x, conditioning = setting
    with torch.no_grad():
        found = model.predict(x, 981, conditioning, record=AttentionRequest((0, -1))).attention
        alone = [model.predict(x, 981, conditioning, record=AttentionRequest((layer,))).attention for layer in (0, -1)]
    assert list(found) == [model.attention_layers[0], model.attention_layers[-1]]
    assert all(torch.equal(found[name], tensor) for entry in alone for name, tensor in entry.items())


@pytest.mark.parametrize(
    "asked", [(), ((0, 1, 2, 3),), ((1,), True), ((-1, 0), True, (1,)), (None, False, (0, 2))], ids=str
)
def test_recording_changes_no_bit_and_ends(model, setting, asked):
    x, conditioning = setting
    with torch.no_grad():
        plain = model.predict(x, 981, conditioning)
        recorded = model.predict(x, 981, conditioning, record=AttentionRequest(*asked))
    assert torch.equal(plain.x0_hat, recorded.x0_hat)
    assert recorded.attention
    assert not plain.attention
    assert not any(layer._forward_pre_hooks for layer in cross_attention_layers(model._unet).values())


def test_a_layer_that_there_is_not_is_named(model, setting):
    x, conditioning = setting
    n, near = len(model.attention_layers), model.attention_layers[0][:-1]
    for layer, says in ((n, f"no cross-attention layer {n}: this model has {n}, from 0 on"), (near, "did you mean")):
        with pytest.raises(UserError, match=says):
            model.predict(x, 981, conditioning, record=AttentionRequest((layer,)))
    assert not any(layer._forward_pre_hooks for layer in cross_attention_layers(model._unet).values())
    with pytest.raises(UserError, match="this model has none"):
        AttentionRequest().chosen(())
    assert AttentionRequest().chosen(("a", "b")) == ["b"]


def test_maps_have_the_sides_of_the_layer():
    assert [_size_of(n, (9, 13)) for n in (117, 35, 12, 4)] == [(9, 13), (5, 7), (3, 4), (2, 2)]


def test_a_sample_can_be_watched_by_its_attention(model, setting):
    """Both branches run in one batch; recorded is the conditional one, at every step."""
    x, conditioning = setting
    asked = Guided(model, conditioning, model.unconditional(len(x)), 5.0, AttentionRequest((0,), per_pixel=True))
    seen = []
    with torch.no_grad():
        end = follow(DDIM.steps(asked, x, times(model, 3)), seen.append)
        plain = Guided(model, conditioning, model.unconditional(len(x)), 5.0)
        assert torch.equal(end, follow(DDIM.steps(plain, x, times(model, 3))))
        for step in seen:
            direct = model.predict(step.x, step.t, conditioning, record=AttentionRequest((0,), per_pixel=True))
            name = model.attention_layers[0]
            torch.testing.assert_close(step.attention[name], direct.attention[name], rtol=1e-4, atol=1e-6)


def test_layers_come_in_the_order_of_the_forward_pass(model, setting):
    x, conditioning = setting
    layers, seen = list(cross_attention_layers(model._unet).values()), []
    handles = [layer.register_forward_pre_hook(lambda module, args: seen.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            model.predict(x, 981, conditioning)
    finally:
        for handle in handles:
            handle.remove()
    assert len(layers) > SCREENED_LAYER
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
        direct = model.predict(x, 981, model.encode(PROMPTS[:2]), record=AttentionRequest()).attention
        (direct,) = direct.values()
    entropy = -(direct * direct.log()).sum(dim=1)
    np.testing.assert_allclose([row["attention_entropy"][1] for row in found[0][:2]], entropy, rtol=1e-5)


def test_low_precision_attention_is_computed_in_float32(folders, model, setting):
    x, conditioning = setting
    half = DiffusionDenoiser(folders["epsilon"], torch.device("cpu"), torch.bfloat16)
    with torch.no_grad():
        exact = model.predict(x, 981, conditioning, record=AttentionRequest()).attention
        low = half.predict(x, 981, half.encode(PROMPTS), record=AttentionRequest()).attention
    (exact,), (low,) = exact.values(), low.values()
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=1e-3)
