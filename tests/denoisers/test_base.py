"""What every model behind the contract can count on."""

from __future__ import annotations

import torch

from sharpaudit.denoisers.base import Conditioning
from sharpaudit.samples.generate import Generator
from sharpaudit.scores.noise_gap import NOISE_GAP
from sharpaudit.scores.screen import ScreenConfig, differences, noise_floor, screen, unconditional_predictions
from sharpaudit.seeds import screen_latent
from tests.support.wrapped import Wrapped, analytic


class Otherwise(Wrapped):
    """A model that was not trained with the empty prompt: without one it draws what others draw for "a cat"."""

    def encode(self, prompts):
        assert "" not in prompts
        return super().encode(prompts)

    def unconditional(self, n=1):
        return self.encode(["a cat"] * n)


def test_without_a_prompt_is_what_the_model_says_it_is():
    model, config = Otherwise(analytic((0.9,))), ScreenConfig(1, 0, 1.0, 4)
    known = unconditional_predictions(model, config)
    assert torch.equal(known["first"][0], x0_of(model, "a cat"))
    cat, dog = screen(model, ["a cat", "a dog"], known, {}, config, [NOISE_GAP])
    assert cat.mean("noise_gap") == noise_floor(model, config, known) == 0 < dog.mean("noise_gap")
    assert not differences(model, ["a cat"], known, config)[0].any()
    guided, plain = (Generator(model, 0, 3, scale, 2).pictures(["a cat"], [("a", 0)])[0] for scale in (9.0, 0.0))
    assert (guided == plain).all()


def x0_of(model, prompt):
    """x0_hat of a prompt where the screen looks."""
    x = screen_latent(0, 0, model.latent_shape)
    return model.predict(x[None], model.first_timestep(), model.encode([prompt])).x0_hat[0]


def test_rows_without_a_prompt_are_those_of_the_empty_prompt_where_a_model_has_one():
    model = analytic((0.9,))
    expected, found = model.encode(["", ""]), model.unconditional(2)
    assert isinstance(found, Conditioning)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
