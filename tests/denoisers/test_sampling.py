"""Samplers: the steps of diffusers' schedulers, closed forms of flows, and a trajectory in the caller's hands."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sharpaudit.denoisers.base import Prediction
from sharpaudit.denoisers.sampling import DDIM, DPM_SOLVER, Guided, follow, times
from sharpaudit.plugs import SOLVERS
from sharpaudit.seeds import latents
from tests.support.flows import flow
from tests.support.wrapped import Wrapped, analytic

PROMPTS = ["planted 0", "a cat", "planted 1"]
BETAS = (1000, 0.00085, 0.012, "scaled_linear")
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, in numpy
pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = pytest.mark.parametrize("solver", [DDIM, DPM_SOLVER], ids=lambda solver: solver.name)


@pytest.fixture(scope="module")
def model():
    return analytic((0.95, 0.4))


def noise(n):
    return latents([("test", i) for i in range(n)], (3, 8, 8))


def guided(model, prompts, guidance=5.0):
    return Guided(model, model.encode(prompts), model.unconditional(len(prompts)), guidance)


def sample(model, prompts, x, steps=25, guidance=5.0, solver=DDIM):
    return follow(solver.steps(guided(model, prompts, guidance), x, times(model, steps)))


class Told(Wrapped):
    """It predicts a sequence fixed beforehand whatever it is shown: no rounding of one step reaches another."""

    def predict(self, x, t, conditioning, **options):
        self.rows.append(len(x))
        return Prediction(latents([("x0", len(self.rows))], (3, 8, 8)).expand(len(x), -1, -1, -1))


def theirs(solver, model, spacing="leading", **settings):
    """The scheduler of diffusers, at our levels to the last bit that it keeps."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    settings |= {"prediction_type": "sample", "steps_offset": 1, "timestep_spacing": spacing}
    if solver is DDIM:
        made = DDIMScheduler(*BETAS, clip_sample=False, set_alpha_to_one=False, **settings)
    else:
        made = DPMSolverMultistepScheduler(*BETAS, solver_order=2, **{"final_sigmas_type": "sigma_min"} | settings)
    made.alphas_cumprod = torch.tensor([model.level(t).a ** 2 for t in range(1000)], dtype=torch.float64)
    made.final_alpha_cumprod = made.alphas_cumprod[0]
    return made


def assert_same_steps(solver, model, scheduler):
    """Ours and the scheduler's, from one noise through the scheduler's times."""
    told, walk = Told(model), [*scheduler.timesteps.tolist(), 0]
    x = expected = noise(1)
    ours = solver.steps(guided(Told(model), ["a"]), x, walk)
    for t in walk[:-1]:
        torch.testing.assert_close(next(ours).x, expected, rtol=1e-5, atol=1e-5)
        expected = scheduler.step(told.predict(x, t, None).x0_hat, t, expected).prev_sample.float()
    torch.testing.assert_close(follow(ours), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 25, 50])
def test_ddim_is_the_scheduler_of_diffusers(model, steps):
    scheduler = theirs(DDIM, model)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == model.timesteps(steps)
    assert_same_steps(DDIM, model, scheduler)


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 25, 50])
@QUIET
@pytest.mark.parametrize("spacing", ["ours", "leading", "linspace", "trailing"])
def test_dpm_solver_is_the_scheduler_of_diffusers(model, steps, spacing):
    scheduler = theirs(DPM_SOLVER, model, "leading" if spacing == "ours" else spacing)
    scheduler.set_timesteps(
        **{"timesteps": model.timesteps(steps)} if spacing == "ours" else {"num_inference_steps": steps}
    )
    if spacing == "leading":
        assert scheduler.timesteps.tolist() == model.timesteps(steps + 1)[:-1]
    assert_same_steps(DPM_SOLVER, model, scheduler)


@QUIET
@pytest.mark.parametrize(("steps", "guidance"), [(1, 5.0), (4, 0.0), (25, 5.0), (50, 7.5), (7, 1.0)])
@BOTH
def test_samples_are_those_of_the_scheduler_of_diffusers(model, solver, steps, guidance):
    """With a model in the loop, so that roundings of one step reach the next."""
    scheduler = theirs(solver, model)
    scheduler.set_timesteps(
        **{"timesteps": model.timesteps(steps)} if solver is DPM_SOLVER else {"num_inference_steps": steps}
    )
    x = expected = noise(3)
    for t in scheduler.timesteps.tolist():
        x0_c, x0_0 = (model.predict(expected, t, model.encode(prompts)).x0_hat for prompts in (PROMPTS, [""] * 3))
        expected = scheduler.step(x0_0 + guidance * (x0_c - x0_0), t, expected).prev_sample.float()
    torch.testing.assert_close(sample(model, PROMPTS, x, steps, guidance, solver), expected, rtol=1e-3, atol=1e-3)


@BOTH
def test_a_sample_costs_two_evaluations_a_step_in_one_batch(model, solver):
    counting = Wrapped(model)
    sample(counting, PROMPTS, noise(3), steps=6, solver=solver)
    assert counting.rows == [6] * 6
    assert solver.evaluations(6) == 12


@BOTH
def test_without_guidance_the_prompt_plays_no_part(model, solver):
    x = noise(3)
    plain = sample(model, [""] * 3, x, guidance=0.0, solver=solver)
    assert torch.equal(sample(model, PROMPTS, x, guidance=0.0, solver=solver), plain)
    # For the empty prompt guidance has nothing to add.
    assert torch.equal(sample(model, [""] * 3, x, guidance=9.0, solver=solver), plain)


@BOTH
def test_a_trajectory_has_the_same_bits_alone_and_in_a_batch(model, solver):
    x = noise(3)
    alone = [sample(model, [prompt], x[i : i + 1], solver=solver) for i, prompt in enumerate(PROMPTS)]
    assert torch.equal(sample(model, PROMPTS, x, solver=solver), torch.cat(alone))


@pytest.mark.parametrize(("solver", "order"), [(DDIM, 1), (DPM_SOLVER, 2)], ids=["ddim", "dpm-solver++"])
def test_the_error_falls_by_the_order_of_the_solver(model, solver, order):
    asked, x = guided(model, ["a cat"], 1.0), noise(1)
    ends = [follow(solver.steps(asked, x, list(range(900, 99, -stride)))) for stride in (2, 25, 50)]
    fine, coarse = ((end - ends[0]).norm() for end in ends[1:])
    assert 0.8 * 2**order < coarse / fine < 1.3 * 2**order


def test_a_flow_takes_steps_of_euler():
    model, x = flow((0.9, 0.4)), noise(3)
    asked, walk = guided(model, PROMPTS), times(model, 8)
    assert (walk[0], walk[-1]) == (1, 0)
    for step, (t, after) in zip(DDIM.steps(asked, x, walk), pairwise(walk), strict=False):
        torch.testing.assert_close(step.x, x, rtol=1e-5, atol=1e-5)
        u_c, u_0 = (model.velocity(x, t, rows) for rows in (asked.conditioning, asked.unconditional))
        x = (x + (after - t) * (u_0 + 5.0 * (u_c - u_0))).float()
    torch.testing.assert_close(sample(model, PROMPTS, noise(3), steps=8), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("solver", "steps", "error"), [(DDIM, 200, 0.02), (DPM_SOLVER, 50, 0.004)])
def test_a_flow_carries_noise_to_the_distribution(solver, steps, error):
    """Of a Gaussian N(m, v) the path from noise z ends at m + sqrt(v) z."""
    model, x = flow(), noise(1)
    means = model.mixture(["a cat"])
    expected = (means.means[0, 0] + means.variances[0, 0].sqrt() * x.double().flatten()).reshape(x.shape).float()
    found = sample(model, ["a cat"], x, steps, 1.0, solver)
    assert torch.isfinite(found).all()
    assert (found - expected).norm() / expected.norm() < error


@BOTH
def test_who_watches_sees_every_step_before_it_is_taken(model, solver):
    x, seen = noise(3), []
    end = follow(solver.steps(guided(model, PROMPTS), x, times(model, 5)), seen.append)
    assert torch.equal(end, sample(model, PROMPTS, x, 5, solver=solver))
    assert [(step.number, step.t) for step in seen] == list(enumerate(model.timesteps(5)))
    assert torch.equal(seen[0].x, x)
    for step in seen:
        assert step.level == model.level(step.t)
        exact = model.predict(step.x, step.t, model.encode(PROMPTS)).x0_hat
        assert torch.equal(step.x0_conditional, exact)
        assert torch.equal(step.x0_unconditional, model.predict(step.x, step.t, model.unconditional(3)).x0_hat)
        assert torch.equal(step.x0, step.guided(5.0))


def test_who_stops_pays_for_what_was_seen(model):
    counting = Wrapped(model)
    for step in DDIM.steps(guided(counting, PROMPTS), noise(3), times(model, 25)):
        if step.number == 2:
            break
    assert counting.rows == [6] * 3


@BOTH
def test_who_steers_by_the_guidance_has_the_sample_of_that_guidance(model, solver):
    def unguided(step):
        step.x0 = step.guided(0.0)

    x = noise(3)
    found = follow(solver.steps(guided(model, PROMPTS), x, times(model, 6)), unguided)
    assert torch.equal(found, sample(model, PROMPTS, x, 6, 0.0, solver))


def test_another_conditioning_or_guidance_holds_from_the_next_step_on(model):
    x, walk = noise(3), times(model, 6)
    asked, middle = guided(model, PROMPTS), []

    def turn(step):
        if step.number == 2:
            asked.conditioning, asked.guidance = model.encode(["a dog"] * 3), 2.0
        middle.append(step.x)

    found = follow(DDIM.steps(asked, x, walk), turn)
    assert torch.equal(found, follow(DDIM.steps(guided(model, ["a dog"] * 3, 2.0), middle[3], walk[3:])))
    plain = [step.x for step in DDIM.steps(guided(model, PROMPTS), x, walk)]
    assert torch.equal(middle[3], plain[3])
    assert not torch.equal(middle[4], plain[4])


def test_latents_that_are_replaced_are_those_the_step_sets_out_from(model):
    x, walk, new = noise(3), times(model, 4), latents([("new", i) for i in range(3)], (3, 8, 8))
    asked = guided(model, PROMPTS)
    first = next(DDIM.steps(asked, x, walk))
    after = model.level(walk[1])
    expected = after.noised(first.x0, first.level.eps(new, first.x0))
    steps = DDIM.steps(asked, x, walk)
    next(steps).x = new
    torch.testing.assert_close(next(steps).x, expected)


def test_solvers_are_known_by_name():
    assert [SOLVERS[name] for name in SOLVERS.ours()] == [DDIM, DPM_SOLVER]
