"""Another embedding in place of the prompt's: it draws towards the picture, row by row, and methods act behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sharpaudit.denoisers.base import SCREEN_STEPS, Denoiser
from sharpaudit.mitigation.attack import Attack
from sharpaudit.mitigation.base import BACKWARD, Unmitigated, mitigate, plain
from sharpaudit.mitigation.embedding import TEXT
from sharpaudit.mitigation.insertion import Insertion
from sharpaudit.mitigation.sail import Sail
from sharpaudit.mitigation.targets import values_of
from tests.mitigation.conftest import Counting, case

SHORT = Attack(steps=4)


def pictures(n: int, side: int = 40) -> torch.Tensor:
    return torch.rand((n, 3, side, side), generator=torch.Generator().manual_seed(0))


def test_pictures_and_their_latents_are_each_others(exact: Denoiser) -> None:
    latents = torch.rand((2, *exact.latent_shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = exact.decode(latents)
    assert torch.allclose(exact.latents_of(shown), latents, atol=1e-6)
    larger = torch.nn.functional.interpolate(shown, scale_factor=3, mode="nearest")
    assert exact.latents_of(larger).shape == latents.shape


def test_latents_of_a_diffusers_folder_are_those_of_its_autoencoder(tiny: Denoiser) -> None:
    vae = tiny._vae
    shown = tiny.decode(torch.randn((2, *tiny.latent_shape), generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        expected = vae.encode(2 * shown - 1).latent_dist.mean * vae.config.scaling_factor
        assert torch.allclose(tiny.latents_of(shown), expected, atol=1e-5)
        assert tiny.latents_of(pictures(1, 77)).shape == (1, *tiny.latent_shape)


def test_the_error_of_the_predicted_noise_falls(tiny: Denoiser) -> None:
    asked, shown = case(tiny), pictures(3)
    found = Attack(steps=30).embeddings(asked, shown)
    with torch.no_grad():
        before = plain(asked).conditioning
        x0 = tiny.latents_of(shown)
        # At noise and times that the attack has not seen.
        errors = [
            torch.stack([Attack()._error(replace(asked, seed=9), x0, given, step) for step in range(20)]).mean(dim=0)
            for given in (before, found)
        ]
    assert (errors[1] < errors[0]).all()
    assert found.tensors[TEXT].shape == before.tensors[TEXT].shape


def test_a_row_does_not_depend_on_those_beside_it(tiny: Denoiser) -> None:
    asked, shown = case(tiny), pictures(3)
    whole = SHORT.embeddings(asked, shown).tensors[TEXT]
    for row in range(3):
        alone = SHORT.embeddings(asked.part([row]), shown[[row]]).tensors[TEXT]
        assert torch.allclose(alone[0], whole[row], atol=1e-3)
    assert not torch.allclose(whole[0], SHORT.embeddings(replace(asked, seed=1), shown).tensors[TEXT][0], atol=1e-3)


def test_its_evaluations_are_counted(tiny: Denoiser) -> None:
    counting = Counting(tiny)
    SHORT.embeddings(case(counting), pictures(3))  # type: ignore[arg-type]
    assert counting.rows + BACKWARD * counting.back == 3 * SHORT.evaluations


def test_times_are_those_of_a_sample(tiny: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(tiny, "level", lambda t, inner=tiny.level: seen.append(t) or inner(t))
    Attack(steps=40).embeddings(case(tiny, ("a",)), pictures(1))
    assert set(seen) <= set(tiny.timesteps(SCREEN_STEPS))
    assert len(set(seen)) > 15


def test_methods_act_behind_the_attack(tiny: Denoiser) -> None:
    """A row without its own embedding draws as ever; text that a method changes counts for nothing behind one."""
    asked = case(tiny)
    prompted = plain(asked).conditioning
    same = replace(asked, embedded=prompted)
    attacked = replace(asked, embedded=SHORT.embeddings(asked, pictures(3)))
    drawn = {
        name: [one.picture for one in mitigate(method, given, 3)]
        for name, method, given in (
            ("plain", Unmitigated(), asked),
            ("same", Unmitigated(), same),
            ("attacked", Unmitigated(), attacked),
            ("with letters", Insertion("token", 8), attacked),
            ("sail", Sail(most_steps=2), attacked),
        )
    }
    for i in range(3):
        assert (drawn["same"][i] == drawn["plain"][i]).all()
        assert (drawn["with letters"][i] == drawn["attacked"][i]).all()
        assert (drawn["attacked"][i] != drawn["plain"][i]).any()
        assert (drawn["sail"][i] != drawn["attacked"][i]).any()
    assert torch.equal(attacked.part([2]).embedded.tensors[TEXT][0], attacked.embedded.tensors[TEXT][2])


def test_a_target_is_that_of_harmless_prompts_as_they_are(tiny: Denoiser) -> None:
    asked = case(tiny)
    attacked = replace(asked, embedded=SHORT.embeddings(asked, pictures(3)))
    assert values_of(Sail(), attacked, ["a hill"], 2) == values_of(Sail(), asked, ["a hill"], 2)


def test_a_model_without_embeddings_is_refused(exact: Denoiser, tiny: Denoiser) -> None:
    assert SHORT.refusal(tiny) is None
    assert SHORT.refusal(exact) == "attack: this model's prompts are no embeddings of tokens"
