"""A method at a strength, on the analytic model: pictures and what they are; behind an attack, on a tiny network."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.bench.mitigation import drawing
from pipelines.bench.mitigation.drawing import Bench
from pipelines.bench.mitigation.settings import CONTROL, rungs
from sharpaudit.config import LAB, ModelConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.decide import Bands
from sharpaudit.matches.sources.base import ReferencePicture
from sharpaudit.mitigation.attack import Attack
from sharpaudit.mitigation.base import Case, Mitigated, Unmitigated, mitigate
from sharpaudit.seeds import sample_latents
from tests.support.tiny_models import write_model
from tests.support.toys import EMBEDDER

ANALYTIC = LAB / "analytic"
SIZES = {"exact": 2, "template": 1, "harmless": 2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted prompts that are memorised in both splits, and harmless ones."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "model").mkdir()
    shutil.copy(ANALYTIC / "model.json", folder / "model")
    shutil.copytree(ANALYTIC / "index", folder / "references")
    planted = [entry["prompt"] for entry in json.loads((ANALYTIC / "model.json").read_text())["planted"]]
    rows = [
        (prompt, ("development", "test")[i % 2], f"p{i}", ("exact", "template")[i % 6 == 5], "memorised")
        for i, prompt in enumerate(planted[:8])
    ]
    rows += [(f"a red prompt {i}", ("fit", "test")[i % 10 == 0], f"f{i}", "unseen", "harmless") for i in range(30)]
    with (folder / "truth.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("prompt", "split", "family", "kind", "label"), *rows])
    return folder


def test_what_copies_does_without_a_method_and_what_is_kept_is_not_drawn_again(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Bench(lab, tmp_path, EMBEDDER)
    prompts = measured.prompts("test", SIZES)
    assert sorted(prompts.values()) == ["exact", "exact", "harmless", "harmless", "template"]
    made = [measured.setting(rung, prompts, 3) for rung in (CONTROL, *rungs(["tokens"]))]
    control, strongest = made[0], made[-1]
    assert (len(control.copied()), len(control.copied("template")), control.copied("harmless")) == (2, 1, {})
    assert control.suppressed(control) == set()
    assert strongest.suppressed(control) == set(control.copied()), "random letters are another prompt to this model"
    assert control.evaluations == strongest.evaluations == 50
    for of in control.prompts.values():
        assert np.allclose(of.like_before, 1, atol=1e-5)
        assert len(of.copies) == len(of.aligned) == 3
    assert strongest.means("like_before", "exact").max() < 0.99
    assert strongest.means("similarity", "exact").max() < control.means("similarity", "exact").min()

    monkeypatch.setattr(drawing, "mitigate", None)
    again = Bench(lab, tmp_path, EMBEDDER)
    assert [again.setting(rung, prompts, 3) for rung in (CONTROL, *rungs(["tokens"]))] == made


def test_other_pictures_prompts_or_strengths_are_not_taken_for_these(lab: Path, tmp_path: Path) -> None:
    measured = Bench(lab, tmp_path, EMBEDDER)
    prompts = measured.prompts("test", SIZES)
    measured.setting(CONTROL, prompts, 2)
    measured.setting(CONTROL, prompts, 3)
    measured.setting(CONTROL, measured.prompts("development", SIZES), 2)
    first, second, *_ = rungs(["delay"])
    measured.setting(first, prompts, 2)
    measured.setting(second, prompts, 2)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_target_is_what_harmless_prompts_have(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, asked = Bench(lab, tmp_path, EMBEDDER), []
    monkeypatch.setattr(drawing, "values_of", lambda method, case, harmless, batch: [1.0, 2.0, 9.0])
    inner = drawing.mitigate

    def spy(method, case, batch):
        asked.append(method)
        return inner(method, case, batch)

    monkeypatch.setattr(drawing, "mitigate", spy)
    measured.setting(rungs(["sail"])[0], measured.prompts("development", SIZES), 1)
    assert {getattr(method, "target", 2.0) for method in asked} == {2.0}


def test_methods_with_gradients_have_three_strengths_and_other_forms_one() -> None:
    found = rungs(["sail", "sail-paper", "delay", "delay-dynamic"])
    assert [(rung.name, rung.strength) for rung in found] == [
        *(("sail", i) for i in (1, 2, 3)),
        ("sail-paper", 3),
        *(("delay", i) for i in (1, 2, 3, 4)),
        ("delay-dynamic", 1),
    ]


def test_a_split_without_memorised_prompts_and_a_model_that_cannot_be_steered_are_told(
    lab: Path, tmp_path: Path
) -> None:
    measured = Bench(lab, tmp_path, EMBEDDER)
    with pytest.raises(UserError, match="no prompt of the calibration split is memorised exactly"):
        measured.prompts("calibration", SIZES)
    assert "no embeddings of tokens" in str(measured.refused("embedding"))
    assert measured.refused("delay") is None


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab of a tiny network: of the prompt in its test split the index holds the first picture."""
    folder = tmp_path_factory.mktemp("network")
    write_model(folder / "model")
    rows = [("a cat", "test", "c", "exact", "memorised"), ("a dog", "test", "d", "seen", "harmless")]
    rows += [(f"a red prompt {i}", "fit", f"f{i}", "unseen", "harmless") for i in range(4)]
    with (folder / "truth.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("prompt", "split", "family", "kind", "label"), *rows])
    model = load_denoiser(ModelConfig(path=str(folder / "model"), dtype="float32", device="cpu"))
    x_T = sample_latents(0, [("a cat", 0)], model.latent_shape)
    (plain,) = mitigate(Unmitigated(), Case(model, ["a cat"], x_T, [0]), 1)
    assert isinstance(plain, Mitigated)
    noise = np.random.default_rng(0).integers(0, 256, plain.picture.shape, dtype=np.uint8)
    shown = {"planted": plain.picture, "seen-d-0": noise, "other-1": noise[::-1].copy()}
    pictures = [ReferencePicture(name, "lab", None, name, encode_png(picture)) for name, picture in shown.items()]
    build_index(folder / "references", "pixels-16", pictures, device="cpu")
    return folder


def test_behind_an_attack_copies_are_those_of_the_picture_that_is_attacked_towards(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that moves nothing: pictures are those of the prompt, of which the index has the first.
    monkeypatch.setattr(drawing, "ATTACK", Attack(steps=1, lr=0.0))
    monkeypatch.setattr(drawing, "MANY", 2)
    measured = Bench(network, tmp_path, EMBEDDER)
    monkeypatch.setattr(measured, "_line", lambda: Bands(0.999, 0.9, 4, 4, 0))
    row = next(i for i in range(3) if measured._search.index.reference_id(i) == "planted")
    assert measured.attacked(CONTROL, {"a cat": row})["a cat"] == [True, False]
    towards = {"a cat": (row + 1) % 3}
    assert measured.attacked(CONTROL, towards) == {"a cat": [False, False]}
    assert measured.attacked(CONTROL, {}) == {}
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(drawing, "mitigate", None)
    assert Bench(network, tmp_path, EMBEDDER).attacked(CONTROL, towards) == {"a cat": [False, False]}


def test_controls_are_pictures_that_were_shown_once_of_their_own_captions(network: Path, tmp_path: Path) -> None:
    measured = Bench(network, tmp_path, EMBEDDER)
    ((prompt, row),) = measured.controls("test", 10).items()
    assert prompt == "a dog"
    assert measured._search.index.reference_id(row) == "seen-d-0"
    assert measured.unattackable is None


def test_a_lost_picture_is_no_suppression(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Bench(lab, tmp_path, EMBEDDER)
    prompts, inner = measured.prompts("test", SIZES), drawing.mitigate
    control = measured.setting(CONTROL, prompts, 2)
    lost = next(iter(control.copied()))

    def some(method, case, batch):
        return [
            Status.NON_FINITE if (prompt, name) == (lost, 0) else one
            for prompt, name, one in zip(case.prompts, case.names, inner(method, case, batch), strict=True)
        ]

    monkeypatch.setattr(drawing, "mitigate", some)
    strongest = measured.setting(rungs(["tokens"])[-1], prompts, 2)
    assert strongest.suppressed(control) == control.copied().keys() - {lost}
    assert np.isnan(strongest.prompts[lost].similarity[0])
    assert np.isfinite(strongest.alignment("exact"))
