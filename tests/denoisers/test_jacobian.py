"""Products with the Jacobian: the two modes against each other, against closed forms and against finite differences."""

from __future__ import annotations

import pytest
import torch

from sharpaudit.denoisers.base import Conditioning
from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser
from sharpaudit.denoisers.jacobian import Asked, gradients, jvp, product, vjp
from sharpaudit.errors import Status
from sharpaudit.seeds import latents
from tests.support.wrapped import Wrapped, analytic

PROMPTS = ["planted 0", "a cat", "planted 1", "", "a dog"]
N, T, SHAPE = len(PROMPTS), 501, (3, 2, 2)


@pytest.fixture(scope="module")
def model():
    return analytic((0.5, 0.9), SHAPE)


@pytest.fixture(scope="module")
def network(folders):
    return DiffusionDenoiser(folders["epsilon"], torch.device("cpu"), torch.float32)


def rows(name, shape=SHAPE, n=N):
    return latents([(name, i) for i in range(n)], shape)


def at(model, prompts=PROMPTS):
    with torch.no_grad():
        return Asked(model, rows("x", model.latent_shape, len(prompts)), T, model.encode(prompts))


def jacobian(model, asked):
    """In x, from the closed form of the Hessian of log p: J = (sigma^2 H + I) / a, with shape (N, D, D), symmetric."""
    level = model.level(T)
    hessian = model.mixture(PROMPTS).hessian(asked.x_NCHW.double().flatten(1), level)
    return (level.sigma**2 * hessian + torch.eye(hessian.shape[-1], dtype=torch.float64)) / level.a


def times(matrices, vectors):
    return (matrices @ vectors.double().flatten(1)[:, :, None])[:, :, 0].float().reshape(vectors.shape)


def test_both_modes_are_the_closed_form(model):
    asked, v = at(model), rows("v")
    expected = times(jacobian(model, asked), v)
    torch.testing.assert_close(torch.stack(jvp(asked, v, batch_size=N)), expected, rtol=1e-4, atol=1e-5)
    found = torch.stack([row.x for row in vjp(asked, v, batch_size=N)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["means", "variances"])
def test_of_a_gaussian_the_conditioning_has_a_closed_form_too(model, name):
    """x0_hat = m + p (x - a m) with p = a V / (a^2 V + sigma^2), elementwise."""
    asked, level = at(model, ["a cat", "a dog"]), model.level(T)
    x, mean, variance = (
        asked.x_NCHW.double().flatten(1),
        *(asked.conditioning.tensors[n][:, 0] for n in ("means", "variances")),
    )
    noisy = level.a**2 * variance + level.sigma**2
    slope = {
        "means": 1 - level.a**2 * variance / noisy,
        "variances": level.a * level.sigma**2 / noisy**2 * (x - level.a * mean),
    }[name]
    direction = rows("direction", tuple(asked.conditioning.tensors[name].shape[1:]), 2).double()
    expected = (slope * direction[:, 0]).float().reshape(2, *SHAPE)
    found = jvp(asked, None, {name: direction}, batch_size=2)
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-4, atol=1e-6)
    u = rows("u", SHAPE, 2)
    pulled = torch.stack([row.conditioning[name][0] for row in vjp(asked, u, batch_size=2)])
    torch.testing.assert_close(pulled, slope * u.double().flatten(1), rtol=1e-4, atol=1e-6)


def test_the_two_modes_are_transposes_of_each_other_in_x_and_in_the_conditioning(network):
    """<u, J v> = <J^T u, v>, of a network whose Jacobian is not symmetric."""
    asked = at(network)
    text = asked.conditioning.tensors["prompt"]
    u, v, w = rows("u", network.latent_shape), rows("v", network.latent_shape), rows("w", tuple(text.shape[1:]))
    pulled = vjp(asked, u, batch_size=3)
    for found, mine in (
        (jvp(asked, v, batch_size=3), [(row.x * v[i]).sum() for i, row in enumerate(pulled)]),
        (
            jvp(asked, None, {"prompt": w}, batch_size=3),
            [(row.conditioning["prompt"] * w[i]).sum() for i, row in enumerate(pulled)],
        ),
    ):
        theirs = (torch.stack(found) * u).flatten(1).sum(dim=1)
        torch.testing.assert_close(theirs, torch.stack(mine), rtol=1e-3, atol=1e-3)
    both = torch.stack(jvp(asked, v, {"prompt": w}, batch_size=N))
    apart = torch.stack(jvp(asked, v, batch_size=N)) + torch.stack(jvp(asked, None, {"prompt": w}, batch_size=N))
    torch.testing.assert_close(both, apart, rtol=1e-3, atol=1e-4)
    symmetric = torch.stack([row.x for row in vjp(asked, v, batch_size=N)])
    assert (torch.stack(jvp(asked, v, batch_size=N)) - symmetric).abs().max() > 1e-2


def test_forward_mode_is_the_limit_of_finite_differences(network):
    asked, h = at(network, PROMPTS[:2]), 0.01
    text = asked.conditioning.tensors["prompt"]
    v, w = rows("v", network.latent_shape, 2), rows("w", tuple(text.shape[1:]), 2)

    def moved(size):
        with torch.no_grad():
            there = Conditioning({"prompt": text + size * w})
            return network.predict(asked.x_NCHW + size * v, T, there).x0_hat

    difference = (moved(h) - moved(-h)) / (2 * h)
    torch.testing.assert_close(
        torch.stack(jvp(asked, v, {"prompt": w}, batch_size=2)), difference, rtol=0.02, atol=0.02
    )


def test_a_number_has_its_gradient_in_the_conditioning(network):
    """The published mitigation descends it: the length of the change that the prompt brings."""
    asked = at(network, PROMPTS[:3])
    with torch.no_grad():
        empty = network.predict(asked.x_NCHW, T, network.unconditional(3)).x0_hat

    def length(x0, which):
        return (x0 - empty[which]).flatten(1).norm(dim=1)

    found = gradients(asked, length, batch_size=2)
    text = asked.conditioning.tensors["prompt"].clone().requires_grad_(True)
    values = length(network.predict(asked.x_NCHW, T, Conditioning({"prompt": text})).x0_hat, [0, 1, 2])
    values.sum().backward()
    torch.testing.assert_close(torch.tensor([row.value for row in found]), values.detach())
    torch.testing.assert_close(
        torch.stack([row.conditioning["prompt"] for row in found]), text.grad, rtol=1e-3, atol=1e-5
    )
    # A step down it makes the length less.
    step = torch.stack([row.conditioning["prompt"] / row.conditioning["prompt"].norm() for row in found])
    with torch.no_grad():
        there = Conditioning({"prompt": asked.conditioning.tensors["prompt"] - 0.05 * step})
        less = length(network.predict(asked.x_NCHW, T, there).x0_hat, [0, 1, 2])
    assert (less < values).all()


class Short(Wrapped):
    """Memory for two rows' graphs: what does not fit is seen on the way back."""

    backward_rows = 2

    def predict(self, x, t, conditioning, **options):
        found = super().predict(x, t, conditioning)

        class Kept(torch.autograd.Function):
            @staticmethod
            def forward(x0):
                return x0.clone()

            @staticmethod
            def setup_context(ctx, inputs, output):
                pass

            @staticmethod
            def backward(ctx, gradient):
                if len(gradient) > self.backward_rows:
                    raise torch.OutOfMemoryError
                return gradient

        return type(found)(Kept.apply(found.x0_hat))


def same(left, right):
    return torch.equal(left.x, right.x) and all(
        torch.equal(tensor, right.conditioning[name]) for name, tensor in left.conditioning.items()
    )


def test_a_batch_that_does_not_fit_is_halved_and_changes_no_bit(model):
    v, whole = rows("v"), at(model)
    forward, reverse = jvp(whole, v, batch_size=N), vjp(whole, v, batch_size=N)
    short = Wrapped(model, most_rows=2)
    for left, right in zip(jvp(at(short), v, batch_size=N), forward, strict=True):
        assert torch.equal(left, right)
    assert max(short.rows) == 2
    for small in (Wrapped(model, most_rows=2), Short(model)):
        found = vjp(at(small), v, batch_size=N)
        assert all(same(left, right) for left, right in zip(found, reverse, strict=True))
    assert jvp(at(Wrapped(model, most_rows=0)), v, batch_size=N) == [Status.OUT_OF_MEMORY] * N
    hopeless = Short(model)
    hopeless.backward_rows = 0
    assert vjp(at(hopeless), v, batch_size=N) == [Status.OUT_OF_MEMORY] * N


def test_who_has_switched_gradients_off_gets_them_all_the_same(model):
    asked, v = at(model), rows("v")
    expected = vjp(asked, v, batch_size=N), jvp(asked, v, batch_size=N)
    with torch.no_grad():
        found = vjp(asked, v, batch_size=N), jvp(asked, v, batch_size=N)
    assert all(same(left, right) for left, right in zip(found[0], expected[0], strict=True))
    assert all(torch.equal(left, right) for left, right in zip(found[1], expected[1], strict=True))
    assert not any(row.x.requires_grad or row.conditioning["means"].requires_grad for row in found[0])


def test_the_product_of_any_function():
    x, v = rows("x"), rows("v")
    torch.testing.assert_close(product(lambda z: z**3, x, v), 3 * x**2 * v)
