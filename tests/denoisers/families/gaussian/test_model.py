"""The oracle is itself checked against densities, automatic differentiation and diffusers' scheduler."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.denoisers.base import Conditioning
from sharpaudit.denoisers.families.gaussian.model import (
    GaussianDenoiser,
    GaussianSpec,
    GaussianTokenizer,
    Mixture,
    Planted,
    read_spec,
)
from sharpaudit.denoisers.sampling import DDIM, Guided, follow, times
from sharpaudit.errors import UserError
from sharpaudit.seeds import latents
from tests.support.strategies import BLANKS, TEXTS, texts
from tests.support.wrapped import analytic

TIMES = [981, 501, 101, 1, 0]
SHARES = (0.2, 0.5, 0.9, 1.0)
POOL = ["", *(f"planted {i}" for i in range(len(SHARES))), *TEXTS.values()]


def noise(n, shape=(3, 8, 8)):
    return latents([("test", i) for i in range(n)], shape)


@pytest.fixture(scope="module")
def model():
    return analytic(SHARES)


@pytest.fixture(scope="module")
def tiny():
    return analytic(SHARES, (3, 2, 2))


pytestmark = pytest.mark.usefixtures("one_thread")


def log_density(mixture, row, level):
    """log p(x) of one noised prompt by torch's own distributions."""
    variances = level.a**2 * mixture.variances[row] + level.sigma**2
    normal = torch.distributions.Independent(
        torch.distributions.Normal(level.a * mixture.means[row], variances.sqrt(), validate_args=False), 1
    )
    kinds = torch.distributions.Categorical(logits=mixture.log_weights[row], validate_args=False)
    return torch.distributions.MixtureSameFamily(kinds, normal, validate_args=False).log_prob


def score_of_prediction(model, x, t, prompts):
    level = model.level(t)
    return (level.a * model.predict(x, t, model.encode(prompts)).x0_hat.double() - x.double()) / level.sigma**2


@pytest.mark.parametrize("t", TIMES)
def test_score_of_one_gaussian_is_exact(model, t):
    x, level, mixture = noise(1), model.level(t), model.mixture(["a cat"])
    expected = -(x.double().flatten() - level.a * mixture.means[0, 0]) / (
        level.a**2 * mixture.variances[0, 0] + level.sigma**2
    )
    found = score_of_prediction(model, x, t, ["a cat"]).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 / level.sigma**2)


@pytest.mark.parametrize("t", TIMES)
def test_score_is_the_gradient_and_hessian_the_second_derivative_of_the_log_density(tiny, t):
    prompts, level = ["", "planted 1", "planted 3", "a cat"], tiny.level(t)
    mixture, x = tiny.mixture(prompts), noise(4, (12,)).double()
    scores, hessians = mixture.score(x, level), mixture.hessian(x, level)
    for row in range(len(prompts)):
        density = log_density(mixture, row, level)
        torch.testing.assert_close(scores[row], torch.func.grad(density)(x[row]), rtol=1e-9, atol=1e-9)
        exact = torch.func.jacrev(torch.func.grad(density))(x[row])
        torch.testing.assert_close(hessians[row], exact, rtol=1e-7, atol=1e-7 * float(exact.abs().max()))


@pytest.mark.parametrize("t", TIMES)
def test_prediction_and_score_agree(model, t):
    """Tweedie: the two are computed apart."""
    prompts, level = ["", "planted 0", "planted 2", "planted 3"], model.level(t)
    x = noise(4)
    expected = model.mixture(prompts).score(x.double().flatten(1), level)
    found = score_of_prediction(model, x, t, prompts).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 / level.sigma**2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, at the first use of its forward mode
def test_prediction_is_differentiable_both_ways(tiny):
    conditioning, x, u = tiny.encode(["planted 1"]), noise(1, tiny.latent_shape), noise(2, tiny.latent_shape)[1:]

    def predict(x):
        return tiny.predict(x, 981, conditioning).x0_hat

    jacobian = torch.func.jacrev(predict)(x).reshape(12, 12)
    forward = torch.func.jvp(predict, (x,), (u,))[1].flatten()
    torch.testing.assert_close(forward, jacobian @ u.flatten(), rtol=1e-4, atol=1e-7)
    # The Jacobian of the posterior mean is (I + sigma^2 H) / a.
    level = tiny.level(981)
    hessian = tiny.mixture(["planted 1"]).hessian(x.double().flatten(1), level)[0]
    exact = (torch.eye(12, dtype=torch.float64) + level.sigma**2 * hessian) / level.a
    torch.testing.assert_close(jacobian.double(), exact, rtol=1e-4, atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(POOL), min_size=1, max_size=9), st.sampled_from(TIMES))
def test_a_row_has_the_same_bits_alone_and_in_any_batch(model, prompts, t):
    x = noise(len(prompts))
    together = model.predict(x, t, model.encode(prompts)).x0_hat
    alone = [model.predict(x[i : i + 1], t, model.encode([prompt])).x0_hat for i, prompt in enumerate(prompts)]
    assert torch.equal(together, torch.cat(alone))


def test_threads_change_no_bit(model):
    """Of predictions large enough to be split among threads, and of whole trajectories; nor does a large batch."""
    prompts = [POOL[i % len(POOL)] for i in range(600)]
    x, conditioning = noise(600), model.encode(prompts)
    small = list(range(0, 600, 83))
    found = []
    for n in (2, 1):
        torch.set_num_threads(n)
        found.append(model.predict(x, 981, conditioning).x0_hat)
        rows = conditioning.select(small)
        asked = Guided(model, rows, model.unconditional(len(small)), 5.0)
        found.append(follow(DDIM.steps(asked, x[small], times(model, 25))))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    alone = [model.predict(x[i : i + 1], 981, conditioning.select([i])).x0_hat for i in range(0, 600, 7)]
    assert torch.equal(found[0][::7], torch.cat(alone))


def test_a_batch_changes_no_bit_before_the_rounding_to_float32(model):
    """Which would hide nearly every difference."""
    prompts, level = [POOL[i % 4] for i in range(300)], model.level(501)
    x = noise(300).double().flatten(1)
    mixture = model.mixture(prompts)
    together = mixture.x0_hat(x, level)
    for i in range(0, 300, 11):
        row = slice(i, i + 1)
        one = Mixture(mixture.log_weights[row], mixture.means[row], mixture.variances[row])
        assert torch.equal(one.x0_hat(x[row], level), together[row])


def test_padding_changes_no_bit():
    """The same prompt in a model with few and with many planted pictures, which its conditioning makes room for."""
    x, prompts = noise(2), ["a cat", "planted 0"]
    few, many = (m.predict(x, 501, m.encode(prompts)).x0_hat for m in (analytic((0.5,)), analytic((0.5,) * 30)))
    assert torch.equal(few, many)


def same(left: Conditioning, right: Conditioning) -> bool:
    return all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)


@settings(deadline=None, max_examples=40)
@given(texts(), texts())
def test_prompts_mean_the_same_only_where_the_tokenizer_says_so(left, right):
    model = analytic((), (3, 1, 2))
    ids = [tokens.model_input_id for tokens in GaussianTokenizer().tokens([left, right])]
    assert same(model.encode([left]), model.encode([right])) == (ids[0] == ids[1])


def test_every_hostile_prompt_has_a_meaning_of_its_own(model):
    means = model.encode([*TEXTS.values(), *BLANKS]).tensors["means"][:, 0]
    assert len({tuple(row.tolist()) for row in means}) == len(TEXTS) + len(BLANKS)


def test_the_model_reads_77_words(model):
    words = [f"w{i}" for i in range(78)]
    cut, whole, short = " ".join(words), " ".join(words[:77]), " ".join(words[:76])
    assert same(model.encode([cut]), model.encode([whole]))
    assert not same(model.encode([whole]), model.encode([short]))
    tokens = GaussianTokenizer().tokens([cut, whole, short])
    assert [t.n_tokens for t in tokens] == [78, 77, 76]
    assert [t.truncated for t in tokens] == [True, False, False]
    assert tokens[0].model_input_id == tokens[1].model_input_id != tokens[2].model_input_id


def test_a_planted_prompt_longer_than_the_model_reads_is_found():
    text = " ".join(["very"] * 100)
    model = GaussianDenoiser(GaussianSpec(kind="gaussian", planted=(Planted(prompt=text, share=1.0),)))
    found = model.mixture([text + " long"]).means[0, 0]
    assert torch.equal(found.float(), model.planted_latent(0).flatten())


def test_schedule_is_that_of_stable_diffusion(model):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", steps_offset=1)
    for t in range(1000):
        level = model.level(t)
        assert level.a**2 == pytest.approx(float(theirs.alphas_cumprod[t]), rel=1e-4)
        assert level.a**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)
    for n in (1, 7, 25, 50, 999):
        theirs.set_timesteps(n)
        assert model.timesteps(n) == theirs.timesteps.tolist()
    assert model.first_timestep() == 981


@pytest.mark.parametrize("n", [-1, 0, 1000])
def test_steps_out_of_range_are_refused(model, n):
    with pytest.raises(UserError, match=f"samples.steps = {n}: .*use 1 to 999"):
        model.timesteps(n)


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_level_out_of_range_is_no_index_from_the_end(model, t):
    with pytest.raises(ValueError, match=f"timestep {t} is not in"):
        model.level(t)


def test_decode_makes_squares_of_four_pixels(model):
    x = noise(2) * 2
    pictures = model.decode(x)
    assert pictures.shape == (2, 3, 32, 32)
    assert pictures.dtype == torch.float32
    squares = pictures.unfold(2, 4, 4).unfold(3, 4, 4)
    assert torch.equal(squares, ((x + 1) / 2).clamp(0, 1)[..., None, None].expand(squares.shape))


def test_planted_pictures_are_distinct_pictures(model):
    pictures = torch.stack([model.planted_latent(i) for i in range(len(SHARES))])
    assert pictures.abs().max() <= 1
    assert torch.cdist(pictures.flatten(1), pictures.flatten(1)).fill_diagonal_(9).min() > 5


def test_the_unconditional_distribution_is_the_average_over_prompts():
    model = analytic((0.5,))
    """Mean and variance of its broad part, against those of many ordinary prompts."""
    mixture = model.mixture([f"caption {i}" for i in range(1000)])
    broad = model.mixture([""])
    spread = mixture.means[:, 0].var(dim=0) + mixture.variances[0, 0]
    assert float((spread / broad.variances[0, 0]).mean()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(spread, broad.variances[0, 0], rtol=0.25, atol=0)
    assert mixture.means[:, 0].mean(dim=0).abs().max() < 5 * float(broad.variances[0, 0].max()) ** 0.5 / 1000**0.5
    assert broad.log_weights.exp().sum() == pytest.approx(1)


def written(tmp_path, **changes):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"kind": "gaussian"} | changes))
    return path


PLANTED = {"prompt": "a", "share": 0.5}
WRONG = {
    "kind": ({"kind": "other"}, "kind"),
    "version": ({"version": 2}, "version"),
    "unknown key": ({"sprad": 1}, "sprad"),
    "nan": ({"spread": math.nan}, "spread.*finite"),
    "infinite": ({"noise": math.inf}, "noise.*finite"),
    "overflow": ({"noise": 1e200}, "noise"),
    "zero": ({"sharpness": 0}, "sharpness"),
    "no channel of colour": ({"latent_shape": [4, 8, 8]}, r"latent_shape\.0.*3"),
    "no height": ({"latent_shape": [3, 0, 8]}, r"latent_shape\.1"),
    "too wide": ({"latent_shape": [3, 8, 10**6]}, r"latent_shape\.2"),
    "share": ({"planted": [{"prompt": "a", "share": 1.5}]}, r"planted\.0\.share"),
    "share nan": ({"planted": [{"prompt": "a", "share": math.nan}]}, r"planted\.0\.share"),
    "empty prompt": ({"planted": [{"prompt": "", "share": 0.5}]}, r"planted\.0\.prompt"),
    "twice": ({"planted": [PLANTED, PLANTED]}, "'a' stands twice"),
    "twice when cut": ({"planted": [PLANTED | {"prompt": "a " * n} for n in (78, 79)]}, "stands twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_specification_is_one_line_that_names_the_mistake(tmp_path, name):
    changes, message = WRONG[name]
    path = written(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        GaussianDenoiser.from_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000])
def test_a_file_that_is_no_specification_is_one_line(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.json: ") as caught:
        read_spec(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot read the model"):
        read_spec(tmp_path / "absent.json")


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.floats(1e-320, 100)] * 3), st.floats(5e-324, 1), st.floats(1e-6, 0.999))
def test_no_allowed_size_gives_nan(sizes, share, weight):
    spec = {"spread": sizes[0], "noise": sizes[1], "sharpness": sizes[2], "planted_weight": weight}
    entries = [{"prompt": f"planted {i}", "share": share} for i in range(3)]
    model = GaussianDenoiser(GaussianSpec.model_validate({"kind": "gaussian", "planted": entries} | spec))
    x = noise(3)
    for t in (981, 0):
        assert model.predict(x, t, model.encode(["", "planted 0", "a cat"])).x0_hat.isfinite().all()


def test_digest_is_of_the_content(tmp_path, model):
    path = written(tmp_path, spread=0.3)
    plain = GaussianDenoiser.from_file(path).digest
    path.write_text('{ "spread":3e-1,\n "kind" : "gaussian"}')
    assert GaussianDenoiser.from_file(path).digest == plain
    assert GaussianDenoiser.from_file(written(tmp_path, spread=0.31)).digest != plain
    assert model.digest != plain
