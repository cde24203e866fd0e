"""Detectors along a trajectory: the first step's are those of the screen, the others those of their definitions."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.bench import trajectory
from pipelines.bench.trajectory import EVALUATIONS, GUIDANCE, LATE, NAMES, STEPS, Seed, measured, tiled_l2
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import AttentionRequest
from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser
from sharpaudit.denoisers.load import load_tokenizer
from sharpaudit.plugs import METRICS
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import PromptScores, ScreenConfig, screen, unconditional_predictions
from sharpaudit.seeds import generator, screen_latent
from tests.support.tiny_models import write_model

PROMPTS = ["cat", "a cat on a mat", "x" * 40]
"""The last is cut."""
SEED, DRAW, STEP = 7, 1, 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def denoiser(folder: Path) -> DiffusionDenoiser:
    return DiffusionDenoiser(folder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def lengths(folder: Path) -> list[int]:
    found = [t.n_tokens for t in load_tokenizer(ModelConfig(path=str(folder))).tokens(PROMPTS)]
    assert found[0] == 3
    assert found[2] > 16
    return found


@pytest.fixture(scope="module")
def found(denoiser: DiffusionDenoiser, lengths: list[int], tmp_path_factory: pytest.TempPathFactory) -> Seed:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectory, "CHUNK", 2)
        return measured(denoiser, PROMPTS, lengths, SEED, DRAW, STEP, tmp_path_factory.mktemp("kept"))


def test_the_first_step_is_that_of_the_screen(denoiser: DiffusionDenoiser, found: Seed) -> None:
    metrics = METRICS.of(["noise_gap", "sharpness", "attention_entropy"])
    config = ScreenConfig(DRAW + 1, SEED, STEP, 4)
    known = unconditional_predictions(denoiser, config, places(metrics))
    rows = [row for row in screen(denoiser, PROMPTS, known, {}, config, metrics) if isinstance(row, PromptScores)]
    names = {"noise_gap": "noise_gap_1", "sharpness": "sharpness", "attention_entropy": "layer_entropy"}
    for theirs, ours in names.items():
        expected = [row.seed_values[theirs][DRAW] for row in rows]
        np.testing.assert_allclose(found.values[ours], expected, rtol=2e-4)


def by_definition(denoiser: DiffusionDenoiser, prompt: str, length: int) -> dict[str, float]:
    """One prompt alone, every map of every step kept: the formulas of the papers, in float64."""
    request = AttentionRequest(tuple(denoiser.attention_layers), per_pixel=True)
    x = screen_latent(SEED, DRAW, denoiser.latent_shape)[None]
    steps = [*denoiser.timesteps(STEPS), 0]
    gaps, maps = [], []
    with torch.no_grad():
        cond, empty = denoiser.encode([prompt]), denoiser.unconditional()
        for t, after in pairwise(steps):
            level, then = denoiser.level(t), denoiser.level(after)
            made = denoiser.predict(x, t, cond, record=request)
            eps_c, eps_0 = (level.eps(x, x0) for x0 in (made.x0_hat, denoiser.predict(x, t, empty).x0_hat))
            gaps.append((eps_c - eps_0)[0].double().numpy())
            maps.append({name: m[0].double().numpy() for name, m in made.attention.items()})
            eps = eps_0 + GUIDANCE * (eps_c - eps_0)
            x = then.a * (x - level.sigma * eps) / level.a + then.sigma * eps
    end = min(length, 16) - 1
    entropies, pads = [], []
    for kept in maps:
        mean_L = np.mean([m.mean(axis=(1, 2)) for m in kept.values()], axis=0)
        entropies.append(-(mean_L * np.log(mean_L)).sum())
        pads.append(-(mean_L[end:] * np.log(mean_L[end:])).sum())
    down = next(m for name, m in maps[-1].items() if name.startswith("down_blocks"))
    mask_HW = down[end]  # of the latent's size in this network
    assert mask_HW.shape == gaps[0].shape[1:]
    return {
        "noise_gap_5": float(np.mean([np.linalg.norm(gap) for gap in gaps[:5]])),
        "noise_gap_50": float(np.mean([np.linalg.norm(gap) for gap in gaps])),
        "attention_entropy": float(np.mean(entropies[-LATE:]) + np.mean(pads[-LATE:]) - pads[0]),
        "bright_ending": float(np.mean([np.linalg.norm(gap * mask_HW) for gap in gaps]) / mask_HW.mean()),
    }


@pytest.mark.parametrize("i", range(len(PROMPTS)))
def test_the_others_are_those_of_their_definitions(
    denoiser: DiffusionDenoiser, found: Seed, lengths: list[int], i: int
) -> None:
    for name, value in by_definition(denoiser, PROMPTS[i], lengths[i]).items():
        assert found.values[name][i] == pytest.approx(value, rel=1e-3), name


def test_what_was_measured_is_not_evaluated_again(
    denoiser: DiffusionDenoiser, lengths: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectory, "CHUNK", 2)
    evaluated, predict = [], DiffusionDenoiser.predict

    def counted(self: DiffusionDenoiser, *args: object, **options: object) -> object:
        evaluated.append(len(args[0]))  # type: ignore[arg-type]
        return predict(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusionDenoiser, "predict", counted)
    first = measured(denoiser, PROMPTS[:2], lengths[:2], SEED, 0, STEP, tmp_path)
    assert sum(evaluated) == 2 * (2 * STEPS + 2)
    whole = measured(denoiser, PROMPTS, lengths, SEED, 0, STEP, tmp_path)
    assert sum(evaluated) == 3 * (2 * STEPS + 2)  # only the third prompt
    for name in NAMES:
        assert (whole.values[name][:2] == first.values[name]).all()
    assert set(whole.seconds) == set(EVALUATIONS)
    assert 0 < whole.seconds["noise_gap_1"] < whole.seconds["noise_gap_5"] < whole.seconds["noise_gap_50"]
    assert whole.pictures.shape == (3, 16, 16, 3)


def test_tiled_distance_is_that_of_the_most_unlike_tile() -> None:
    pictures = generator("tiles").integers(0, 256, (2, 3, 8, 12, 3)).astype(np.uint8)
    pictures[1] = pictures[1, :1]  # three times the same picture
    pictures[1, 2, 0, 0] = 255 - pictures[1, 2, 0, 0]
    expected = []
    for many in pictures.astype(float) / 255:
        far = []
        for a, b in combinations(many, 2):
            tiles = [
                np.sqrt(np.mean((a - b)[y : y + 2, x : x + 3] ** 2)) for y in range(0, 8, 2) for x in range(0, 12, 3)
            ]
            far.append(max(tiles))
        expected.append(-np.mean(far))
    np.testing.assert_allclose(tiled_l2(pictures), expected)
    assert tiled_l2(pictures)[1] > tiled_l2(pictures)[0]
