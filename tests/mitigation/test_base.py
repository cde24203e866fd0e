"""The contract: a picture depends on no other, none is what generation draws, and costs are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.mitigation.base import BACKWARD, Mitigated, Mitigation, Unmitigated, mitigate
from sharpaudit.mitigation.delay import Delay
from sharpaudit.mitigation.sail import Sail
from sharpaudit.plugs import MITIGATIONS
from sharpaudit.samples.generate import Generator
from tests.mitigation.conftest import PROMPTS, Counting, case

OF_TOKENS = ("embedding", "attention")
"""Methods that a model without tokens refuses."""


def drawn(found: list[Mitigated | Status]) -> list[Mitigated]:
    return [one for one in found if isinstance(one, Mitigated)]


def test_no_mitigation_is_what_generation_draws(exact: Denoiser) -> None:
    found = drawn(mitigate(Unmitigated(), case(exact), 3))
    pictures = Generator(exact, 0, 6, 5.0, 6).pictures(PROMPTS, case(exact).x_T)
    assert all((one.picture == picture).all() for one, picture in zip(found, pictures, strict=True))
    assert [(one.evaluations, one.reached, one.told) for one in found] == [(12, None, {})] * 3


@pytest.mark.parametrize("name", MITIGATIONS.ours())
def test_a_picture_depends_on_no_other(tiny: Denoiser, name: str) -> None:
    """Within the rounding of kernels that differ by batch size."""
    asked = case(tiny, ("cat", "a b", "c"))
    together, alone = (
        mitigate(MITIGATIONS[name].method, asked, 3),
        mitigate(MITIGATIONS[name].method, asked.part([1]), 1),
    )
    (one,), other = drawn(alone), drawn(together)[1]
    assert np.abs(one.picture.astype(int) - other.picture.astype(int)).max() <= 2
    assert one.evaluations == other.evaluations
    assert one.told == pytest.approx(other.told, rel=1e-3)


@pytest.mark.parametrize("name", [name for name in MITIGATIONS.ours() if name != "none"])
def test_every_method_does_something(tiny: Denoiser, name: str) -> None:
    asked = case(tiny, ("a b c", "cat"))
    before, after = (drawn(mitigate(one, asked, 2)) for one in (Unmitigated(), MITIGATIONS[name].method))
    assert any((a.picture != b.picture).any() for a, b in zip(after, before, strict=True))
    assert all(a.evaluations >= b.evaluations for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("target", [None, 0.2])
@pytest.mark.parametrize("name", MITIGATIONS.ours())
def test_evaluations_are_those_that_were_made(tiny: Denoiser, name: str, target: float | None) -> None:
    """Two more for each that a gradient goes back through. Alone, so that no other row is waited for."""
    counting = Counting(tiny)
    for row in range(2):
        counting.rows = counting.back = 0
        (one,) = drawn(
            mitigate(MITIGATIONS[name].aimed(target).method, case(counting, ("cat", "a b c")).part([row]), 1)
        )  # type: ignore[arg-type]
        assert one.evaluations == counting.rows + BACKWARD * counting.back
        assert bool(counting.back) == (name.startswith("sail") or name == "embedding") or target is not None


def test_a_picture_that_is_not_finite_is_none(exact: Denoiser) -> None:
    class Blind(Counting):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            pictures = self.inner.decode(latents)
            pictures[1] = torch.nan
            return pictures

    found = mitigate(Unmitigated(), case(Blind(exact)), 3)  # type: ignore[arg-type]
    assert [isinstance(one, Mitigated) for one in found] == [True, False, True]
    assert found[1] == Status.NON_FINITE


def test_what_does_not_fit_the_memory_is_drawn_in_smaller_batches(exact: Denoiser) -> None:
    small = Counting(exact, most_rows=2)
    found = mitigate(Sail(most_steps=2), case(small), 3)  # type: ignore[arg-type]
    whole = mitigate(Sail(most_steps=2), case(exact), 3)
    assert all((a.picture == b.picture).all() for a, b in zip(drawn(found), drawn(whole), strict=True))
    assert max(small.batches) == 2
    assert mitigate(Unmitigated(), case(Counting(exact, most_rows=1)), 3) == [Status.OUT_OF_MEMORY] * 3  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OF_TOKENS)
def test_a_model_without_tokens_is_one_line(exact: Denoiser, name: str) -> None:
    with pytest.raises(UserError, match=f"mitigation by {name}: this model.*; take another"):
        mitigate(MITIGATIONS[name].method, case(exact), 3)


def test_strengths_rise_and_the_middle_one_is_offered_alone() -> None:
    for name in MITIGATIONS.ours():
        offered = MITIGATIONS[name]
        assert offered.name == name
        rungs = offered.rungs()
        assert len({setting for setting, _ in rungs}) == len(rungs)
        values = [getattr(method, offered.varied) for _, method in rungs] if offered.varied else []
        assert values == list(offered.strengths)
        assert values in (sorted(values), sorted(values, reverse=True))


@pytest.mark.parametrize(
    ("varied", "strengths"), [("shar", (0.5,)), ("share", ()), ("share", (1, 2, 3, 4, 5)), ("", (1,))]
)
def test_strengths_that_cannot_be_are_refused_where_they_are_declared(
    varied: str, strengths: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="`varied` must be a field of its method"):
        Mitigation("late", Delay(0.5), varied, strengths)


def test_a_target_is_that_of_methods_which_have_one() -> None:
    sail, delay = MITIGATIONS["sail"], MITIGATIONS["delay"]
    assert sail.aimed(3.0).method == Sail(3.0, most_steps=40, of_target=0.25)
    aims = [method.aim for _, method in sail.aimed(4.0).rungs()]  # type: ignore[attr-defined]
    assert aims == [4, 2, 1, 0.5]
    assert [method.aim for _, method in sail.rungs()] == [None] * 4  # type: ignore[attr-defined]
    assert sail.rungs()[1][0] == "of_target = 0.5"
    assert delay.aimed(3.0) is delay
