"""An epsilon and a v model of the same distribution have the same metrics: a wrong sign or scale in either shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharpaudit.plugs import METRICS
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.seeds import generator
from tests.support.models import OptimalNetwork, open_model
from tests.support.tiny_models import PREDICTIONS

NAMES = [name for name in METRICS if name != "attention_entropy"]
PROMPTS = [f"prompt {i}" for i in range(6)]
CONFIG = ScreenConfig(2, 0, 1.0, 4)


class OptimalConditionalNetwork(torch.nn.Module):
    """The best network for pictures from Gaussians: a prompt shifts the mean its own way and narrows the spread."""

    def __init__(self, model, prediction):
        super().__init__()
        draw = generator("conditional gaussian")
        root_DD = torch.from_numpy(draw.standard_normal((256, 256))) / 16
        self.mean_D, self.wide_DD = torch.from_numpy(draw.standard_normal(256)), root_DD @ root_DD.T
        self.empty_LE = model.encode([""]).tensors["prompt"][0]
        self.shifts_ED = torch.from_numpy(draw.standard_normal((self.empty_LE.numel(), 256))) / 16
        self.levels, self.prediction = model._schedule.alphas_cumprod, prediction

    def forward(self, x, t, encoder_hidden_states, return_dict):
        text_BE = (encoder_hidden_states - self.empty_LE).double().flatten(1)
        rows = [self.one(x[i : i + 1], t, text_BE[i]) for i in range(len(x))]
        return (torch.cat(rows),)

    def one(self, x, t, text_E):
        narrow = 0.3 if text_E.norm() > 1e-3 else 1.0
        mean_D = self.mean_D + text_E @ self.shifts_ED
        return OptimalNetwork(mean_D, narrow * self.wide_DD, self.levels, self.prediction)(x, t, None, None)[0]


def metrics_of(folder, prediction):
    model = open_model(folder)
    model._unet = OptimalConditionalNetwork(model, prediction)
    model.attention_layers = ()
    metrics = METRICS.of(NAMES)
    with torch.no_grad():
        known = unconditional_predictions(model, CONFIG, places(metrics))
        fit = np.stack(differences(model, [f"fit {i}" for i in range(12)], known, CONFIG))
        found = screen(model, PROMPTS, known, dict.fromkeys(CONFIG.seeds, fit_subspace(fit, 2)), CONFIG, metrics)
    return {name: np.array([row.seed_values[name] for row in found]) for name in NAMES}


@pytest.fixture(scope="module")
def both(folders):
    return [metrics_of(folders[prediction], prediction) for prediction in PREDICTIONS]


@pytest.mark.parametrize("name", NAMES)
def test_both_predictions_give_the_same_metric(both, name):
    epsilon, v = (found[name] for found in both)
    scale = np.abs(epsilon).max()
    assert scale > 1e-6
    np.testing.assert_allclose(v, epsilon, rtol=2e-3, atol=2e-3 * scale)
    # And the values differ, so that agreement means something.
    assert epsilon.std() > 1e-3 * scale
