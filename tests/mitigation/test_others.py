"""Embedding, noise, delay, insertion and attention, each against its formula."""

from __future__ import annotations

import pytest
import torch

from sharpaudit.denoisers.attention import attention, cross_attention_layers
from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser
from sharpaudit.denoisers.sampling import DDIM, Guided, times
from sharpaudit.errors import UserError
from sharpaudit.mitigation.attention import Attention
from sharpaudit.mitigation.base import Difference, mitigate, norms, plain
from sharpaudit.mitigation.delay import Delay
from sharpaudit.mitigation.embedding import Embedding
from sharpaudit.mitigation.insertion import Insertion
from sharpaudit.mitigation.noise import Noise
from tests.mitigation.conftest import Counting, case
from tests.support.flows import flow

WORDS = ("cat", "a b c d", "b")


def test_an_embedding_moves_but_for_its_beginning_and_the_gap_falls(tiny: Denoiser) -> None:
    asked = case(tiny, WORDS)
    found, held = Embedding(most_steps=6).steer(asked), plain(asked)
    assert found.told["before"] == pytest.approx(Embedding().values(asked), rel=1e-5)
    assert all(a < b for a, b in zip(found.told["after"], found.told["before"], strict=True))
    moved, own = found.conditioning.tensors["prompt"], held.conditioning.tensors["prompt"]
    assert (moved[:, 0] == own[:, 0]).all()
    assert (moved[:, 1:] != own[:, 1:]).any(dim=(1, 2)).all()
    gap = norms(Difference(asked, found.conditioning, found.unconditional).eps(asked.x_T))
    assert found.told["after"] == pytest.approx(gap.tolist(), rel=1e-4)
    # Once without the prompt, then seven times with it and six times back.
    assert found.evaluations == [1 + 7 + 2 * 6] * 3


def test_an_embedding_stops_at_its_target(tiny: Denoiser) -> None:
    asked = case(tiny, WORDS)
    begun = Embedding().values(asked)
    found = Embedding(target=max(begun) * 1.01).steer(asked)
    assert (found.reached, found.evaluations) == ([True] * 3, [2] * 3)
    assert torch.equal(found.conditioning.tensors["prompt"], plain(asked).conditioning.tensors["prompt"])


def test_noise_goes_against_what_the_gap_gains_along_itself(exact: Denoiser) -> None:
    asked = case(exact)
    steered = plain(asked)
    difference, x = Difference(asked, steered.conditioning, steered.unconditional), asked.x_T
    for _ in range(2):
        gap = difference.eps(x)
        x = x - 0.7 * (difference.eps(x + 50 * gap / norms(gap)[:, None, None, None]) - gap)
    found = Noise().steer(asked)
    torch.testing.assert_close(found.x_T, x)
    assert found.evaluations == [8] * 3
    assert found.watch is not None


def followed(denoiser: Denoiser, watch: object) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """x0 as it is taken, as it would be guided, and by the prompt alone, at each step."""
    asked = case(denoiser, steps=10)
    model = Guided(denoiser, denoiser.encode(asked.prompts), denoiser.unconditional(3), 5.0)
    told = []
    for step in DDIM.steps(model, asked.x_T, times(denoiser, 10)):
        watch(step)  # type: ignore[operator]
        told.append((step.x0, step.guided(5.0), step.guided(1.0)))
    return told


@pytest.mark.parametrize(("share", "first"), [(0.4, 4), (0.25, 3), (0.0, 0), (1.0, 10)])
def test_guidance_begins_after_a_share_of_the_steps(exact: Denoiser, share: float, first: int) -> None:
    steered = Delay(share).steer(case(exact, steps=10))
    for number, (taken, guided, alone) in enumerate(followed(exact, steered.watch)):
        assert torch.equal(taken, alone if number < first else guided)
    assert (steered.told["guided_from"], steered.reached) == ([first] * 3, None)


def test_guidance_begins_behind_the_first_minimum_of_each_picture_and_stays(exact: Denoiser) -> None:
    asked = case(exact, steps=10)
    gaps, taken = [], []
    steered = Delay(None).steer(asked)
    watch = steered.watch
    assert watch is not None
    model = Guided(exact, exact.encode(asked.prompts), exact.unconditional(3), 5.0)
    for step in DDIM.steps(model, asked.x_T, times(exact, 10)):
        gaps.append(norms(step.x0_conditional - step.x0_unconditional) * step.level.a / step.level.sigma)
        watch(step)
        taken.append((step.x0 == step.guided(5.0)).flatten(1).all(dim=1).tolist())
    for row in range(3):
        own = [float(gap[row]) for gap in gaps]
        rises = [i for i in range(1, 10) if own[i] > own[i - 1]]
        first = rises[0] if rises else 10
        assert [told[row] for told in taken] == [i >= first for i in range(10)]
        assert steered.told["guided_from"][row] == first
        assert steered.reached is not None
        assert steered.reached[row] == bool(rises)


def test_noise_alone_is_no_minimum() -> None:
    """At the first step of a flow model there is no gap, whatever the prompt."""
    model = flow()
    asked = case(model, ("a", "b", "c"), steps=10)
    steered = Delay(None).steer(asked)
    assert steered.watch is not None
    gaps = []
    guided = Guided(model, model.encode(asked.prompts), model.unconditional(3), 5.0)
    for step in DDIM.steps(guided, asked.x_T, times(model, 10)):
        gaps.append(norms(step.x0_conditional - step.x0_unconditional) * step.level.a / step.level.sigma)
        steered.watch(step)
    assert (gaps[0] == 0).all()
    for row in range(3):
        own = [float(gap[row]) for gap in gaps]
        rises = [i for i in range(2, 10) if own[i] > own[i - 1]]
        assert steered.told["guided_from"][row] == (rises[0] if rises else 10)


@pytest.mark.parametrize("piece", ["number", "repeat", "token"])
def test_pieces_stand_between_the_words_which_stay_in_their_order(exact: Denoiser, piece: str) -> None:
    asked = case(exact, ("one two three", "four", ""))
    changed = Insertion(piece, 4).changed(asked)  # type: ignore[arg-type]
    for before, after in zip(asked.prompts, changed, strict=True):
        words, rest = after.split(), iter(after.split())
        assert len(words) == len(before.split()) + 4
        assert all(word in rest for word in before.split())
        added = [word for word in words if word not in before.split()]
        if piece == "repeat" and before:
            assert not added
        else:
            assert all(word.isdecimal() if piece != "token" else word.isalpha() for word in added)
    assert Insertion(piece, 4).changed(asked.part([1])) == changed[1:2]  # type: ignore[arg-type]
    assert Insertion(piece, 0).changed(asked) == ["one two three", "four", ""]  # type: ignore[arg-type]


def x0_hat(denoiser: Denoiser, conditioning: Conditioning, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.predict(x, denoiser.first_timestep(), conditioning).x0_hat


def test_attention_that_is_changed_by_nothing_is_the_models_own(tiny: Denoiser) -> None:
    asked = case(tiny, WORDS)
    steered = Attention().steer(asked)
    plainly = x0_hat(tiny, plain(asked).unconditional, asked.x_T)
    torch.testing.assert_close(x0_hat(tiny, steered.unconditional, asked.x_T), plainly, rtol=1e-4, atol=1e-4)
    # And the model is as it was when nothing is steered.
    assert torch.equal(x0_hat(tiny, plain(asked).unconditional, asked.x_T), plainly)


def test_padding_gets_no_attention(tiny: Denoiser) -> None:
    """Whatever stands there, while a change of a word is seen."""
    asked = case(tiny, ("cat", "a b"))
    steered = Attention(begin=1.0).steer(asked)
    text = steered.conditioning.tensors["prompt"]
    padded, worded = text.clone(), text.clone()
    padded[:, 8:] += 3.0
    worded[:, 1] += 3.0
    before = x0_hat(tiny, steered.conditioning, asked.x_T)
    told = [
        x0_hat(tiny, Conditioning(steered.conditioning.tensors | {"prompt": t}), asked.x_T) for t in (padded, worded)
    ]
    torch.testing.assert_close(told[0], before)
    assert (told[1] - before).abs().flatten(1).amax(dim=1).min() > 1e-3
    without_end = Attention(begin=1.0, end=False).steer(asked)
    kept = torch.isfinite(without_end.conditioning.tensors["attention_bias"]).sum(dim=1)
    assert (kept == torch.isfinite(steered.conditioning.tensors["attention_bias"]).sum(dim=1) - 1).all()


def test_the_logit_of_the_beginning_is_multiplied_and_nothing_else(tiny: DiffusionDenoiser) -> None:
    """In every layer, of any number of heads and rows: the odds of other tokens stay what they are."""
    tensors = Attention(begin=1.5).steer(case(tiny, WORDS)).conditioning.tensors
    draw = torch.Generator().manual_seed(0)
    for layer in cross_attention_layers(tiny.unet).values():
        pixels = torch.randn(3, 10, layer.to_q.in_features, generator=draw)
        own, steered = (
            attention(layer, pixels, tensors["prompt"], *more)
            for more in ((), (tensors["attention_scale"], tensors["attention_bias"]))
        )
        kept = torch.isfinite(tensors["attention_bias"])[:, None, None].expand_as(own)
        assert (steered[~kept] == 0).all()
        odds, changed = (torch.log(weights[0, :, :, 1] / weights[0, :, :, 2]) for weights in (own, steered))
        torch.testing.assert_close(changed, odds, rtol=1e-4, atol=1e-4)
        logits = (own.log() * 1.0)[0, :, :, 0] - own.log()[0, :, :, 1]
        query = layer.to_q(pixels).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        key = layer.to_k(tensors["prompt"]).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        first = (query @ key.transpose(2, 3) * layer.scale)[0, :, :, 0]
        torch.testing.assert_close(
            torch.log(steered[0, :, :, 0] / steered[0, :, :, 1]), logits + 0.5 * first, rtol=1e-3, atol=1e-3
        )


def test_a_model_that_does_not_look_is_not_steered(tiny: DiffusionDenoiser) -> None:
    class Deaf(Counting):
        steers_attention = False

    with pytest.raises(UserError, match="lets nobody steer its attention"):
        mitigate(Attention(), case(Deaf(tiny)), 2)  # type: ignore[arg-type]
