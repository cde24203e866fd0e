"""Embedding, noise, delay, insertion and attention, each against its formula."""

from __future__ import annotations

import pytest
import torch

from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.denoisers.sampling import DDIM, Guided, times
from sharpaudit.mitigation.attention import Attention
from sharpaudit.mitigation.base import Difference, Mitigated, mitigate, norms, plain
from sharpaudit.mitigation.delay import Delay
from sharpaudit.mitigation.embedding import Embedding
from sharpaudit.mitigation.insertion import Insertion
from sharpaudit.mitigation.noise import Noise
from tests.mitigation.conftest import case

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
    assert found.evaluations == [2 * 7 + 2 * 6] * 3


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


def test_guidance_begins_at_the_step_that_is_named(exact: Denoiser) -> None:
    watch = Delay(4).steer(case(exact)).watch
    for number, (taken, guided, alone) in enumerate(followed(exact, watch)):
        assert torch.equal(taken, alone if number < 4 else guided)


def test_guidance_begins_behind_the_first_minimum_of_each_picture_and_stays(exact: Denoiser) -> None:
    asked = case(exact, steps=10)
    gaps, taken = [], []
    watch = Delay(None).steer(asked).watch
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


def test_the_beginning_draws_more_attention(tiny: Denoiser) -> None:
    asked = case(tiny, WORDS)
    tensors = [Attention(begin=begin).steer(asked).conditioning.tensors["attention_scale"] for begin in (1.0, 1.5)]
    assert (tensors[1] - tensors[0] == torch.eye(1, tensors[0].shape[1])[0] * 0.5).all()
    found = [mitigate(Attention(begin=begin), asked, 3) for begin in (1.0, 4.0)]
    pairs = [
        (a.picture, b.picture)
        for a, b in zip(*found, strict=True)
        if isinstance(a, Mitigated) and isinstance(b, Mitigated)
    ]
    assert len(pairs) == 3
    assert any((a != b).any() for a, b in pairs)
