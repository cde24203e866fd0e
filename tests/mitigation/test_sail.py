"""SAIL: what the prompt adds is what it is said to be and falls, bounds are kept, small noise alone is no success."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sharpaudit.denoisers.base import Denoiser
from sharpaudit.mitigation.base import BACKWARD, Difference, norms, plain
from sharpaudit.mitigation.sail import EVALUATIONS, Objective, Sail
from sharpaudit.plugs import METRICS
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import PromptScores, ScreenConfig, screen, unconditional_predictions
from sharpaudit.scores.sharpness import finite_difference
from sharpaudit.seeds import screen_latents
from tests.mitigation.conftest import Counting, case
from tests.support.flows import flow
from tests.support.wrapped import exact_sharpness


def test_our_objective_is_the_sharpness(exact: Denoiser) -> None:
    asked = case(exact)
    steered = plain(asked)
    difference = Difference(asked, steered.conditioning, steered.unconditional)
    delta = difference(asked.x_T)
    measured = finite_difference(difference, asked.x_T, delta, difference.level, 1.0)
    assert Sail().values(asked) == pytest.approx(measured.tolist(), rel=1e-5)
    known = exact_sharpness(exact, asked.prompts, asked.x_T, difference.level)  # type: ignore[arg-type]
    assert Sail(h=1e-2).values(asked) == pytest.approx(known.tolist(), rel=0.02)


def test_the_other_objectives_are_those_of_paper_and_release(exact: Denoiser) -> None:
    asked = case(exact)
    steered = plain(asked)
    difference = Difference(asked, steered.conditioning, steered.unconditional)
    x, score = asked.x_T, difference.level.a / difference.level.sigma**2
    s = score * difference(x)
    moved = score * difference(x + 0.5 * s / norms(s)[:, None, None, None]) - s
    paper = norms(moved) ** 2
    assert Sail(objective="paper", h=0.5).values(asked) == pytest.approx(paper.tolist(), rel=1e-4)
    eps = difference.eps(x)
    release = norms(difference.eps(x + eps / norms(eps)[:, None, None, None]))
    assert Sail(objective="release").values(asked) == pytest.approx(release.tolist(), rel=1e-4)


@pytest.mark.parametrize("objective", ["ours", "paper", "release"])
def test_what_the_prompt_adds_falls_and_ours_stays_on_the_sphere(exact: Denoiser, objective: Objective) -> None:
    asked = case(exact)
    # Without alpha, which of paper and release outweighs the prompt here.
    found = Sail(objective=objective, most_steps=8, alpha=0.0).steer(asked)
    before, after = found.told["before"], found.told["after"]
    assert all(a < b for a, b in zip(after[:2], before[:2], strict=True))
    if objective == "ours":
        assert norms(found.x_T).tolist() == pytest.approx(norms(asked.x_T).tolist(), rel=1e-5)
    # What is told is the value of the noise that is returned.
    again = Sail(objective=objective).values(replace(asked, x_T=found.x_T))
    assert again == pytest.approx(after, rel=1e-4)
    assert found.reached is None


@pytest.mark.parametrize("objective", ["paper", "release"])
def test_small_noise_alone_comes_to_no_target(exact: Denoiser, objective: Objective) -> None:
    """The objectives of paper and release fall with |x|, whatever the prompt adds."""
    asked = case(exact)
    shrunk = replace(asked, x_T=asked.x_T * 0.999)
    target = min(Sail(objective=objective).values(asked)) * 0.5
    found = Sail(target, objective, most_steps=0).steer(shrunk)
    assert found.reached == [False] * 3


def test_a_flow_model_is_looked_at_as_the_screen_looks() -> None:
    """Noise times the level's scale: of Stable Diffusion 1, of a flow model .93."""
    model = flow()
    asked = case(model, ("a", "b"))
    steered = plain(asked)
    difference = Difference(asked, steered.conditioning, steered.unconditional)
    assert 0.9 < difference.level.scale < 0.95
    config = ScreenConfig(1, 0, 1.0, 4)
    noise = screen_latents(0, [0], model.latent_shape).expand(2, *model.latent_shape)
    known = unconditional_predictions(model, config, places(METRICS.of(["sharpness"])))
    screened = screen(model, asked.prompts, known, {}, config, METRICS.of(["sharpness"]))
    expected = [row.seed_values["sharpness"][0] for row in screened if isinstance(row, PromptScores)]
    assert Sail().values(replace(asked, x_T=noise)) == pytest.approx(expected, rel=1e-4)


def test_a_row_stops_at_its_target_and_the_others_go_on(exact: Denoiser) -> None:
    asked = case(exact)
    begun = Sail().values(asked)
    found = Sail(target=begun[1] * 1.01, most_steps=15).steer(asked)
    assert found.reached is not None
    assert found.reached[1:] == [True, True] or begun[2] > begun[1]
    assert (found.x_T[1] == asked.x_T[1]).all()
    assert found.evaluations[1] == 4
    assert found.evaluations[0] > 4
    assert Sail(target=0.0, most_steps=1).steer(asked).reached == [False] * 3


def test_a_row_that_is_done_is_evaluated_no_more(exact: Denoiser) -> None:
    asked = case(Counting(exact))  # type: ignore[arg-type]
    begun = Sail().values(case(exact))
    found = Sail(target=begun[1] * 1.01, most_steps=15).steer(asked)
    steps = [(spent - EVALUATIONS) / (EVALUATIONS * (1 + BACKWARD)) for spent in found.evaluations]
    assert len(set(steps)) > 1
    assert asked.denoiser.rows == sum(EVALUATIONS * (n + 1) for n in steps)  # type: ignore[attr-defined]
    alone = [Sail(target=begun[1] * 1.01, most_steps=15).steer(case(exact).part([row])) for row in range(3)]
    for row, one in enumerate(alone):
        torch.testing.assert_close(one.x_T[0], found.x_T[row], rtol=1e-4, atol=1e-4)
        assert one.evaluations == [found.evaluations[row]]


def test_other_noise_is_tried_where_the_first_does_not_come_there(exact: Denoiser) -> None:
    asked = case(exact)
    one, three = (Sail(target=0.0, most_steps=1, tries=n).steer(asked) for n in (1, 3))
    assert all(a <= b for a, b in zip(three.told["after"], one.told["after"], strict=True))
    assert any(a < b for a, b in zip(three.told["after"], one.told["after"], strict=True))
    assert three.told["before"] == one.told["before"]
    assert three.evaluations == [3 * value for value in one.evaluations]
    alone = Sail(target=0.0, most_steps=1, tries=3).steer(asked.part([1]))
    torch.testing.assert_close(alone.x_T[0], three.x_T[1])
