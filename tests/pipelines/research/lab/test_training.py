"""Training: every view once an epoch, a resumed training as if never stopped, and the miniature from nothing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from pipelines.research.lab import publish
from pipelines.research.lab import training as lab
from pipelines.research.lab.build import build, kept_pictures, read_recipe
from pipelines.research.lab.tokenizer import END, MAX_LENGTH, START, write_tokenizer
from pipelines.research.lab.trainingset import MINIATURE, Recipe, picture, plan
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import UserError
from sharpaudit.images import decode, sha256_hex
from sharpaudit.scores.noise_gap import noise_gap
from sharpaudit.scores.screen import ScreenConfig, unconditional_predictions

SHORT = replace(lab.MINIATURE, steps=3, batch=2, checkpoint_every=2, log_every=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("lab") / "tokenizer"
    write_tokenizer(folder, plan(MINIATURE).captions)
    return CLIPTokenizer.from_pretrained(folder)


def test_any_text_has_tokens_and_captions_fit(tokenizer: CLIPTokenizer) -> None:
    captions = plan(Recipe()).captions[::50]
    assert max(len(ids) for ids in tokenizer(captions)["input_ids"]) <= MAX_LENGTH
    assert tokenizer.unk_token_id not in tokenizer("ein Käse, 東京 ☂", add_special_tokens=False)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    assert tokenizer("")["input_ids"] == [start, end]


def test_a_trained_word_is_fewer_tokens_than_letters(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize("sticker") == ["sticker</w>"]


def test_every_view_comes_once_an_epoch() -> None:
    views = np.repeat(np.arange(5), [1, 3, 2, 1, 5])
    training = replace(lab.Training(), batch=4, steps=9)
    rows = np.concatenate([rows for _, rows in lab.batches(views, training, 0)])
    for epoch in range(3):
        assert sorted(rows[12 * epoch : 12 * (epoch + 1)]) == sorted(views)
    assert (rows[:12] != rows[12:24]).any()
    later = list(lab.batches(views, training, 5))
    assert [step for step, _ in later] == [5, 6, 7, 8]
    assert (np.concatenate([r for _, r in later]) == rows[20:]).all()


def test_a_resumed_training_is_as_if_never_stopped(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 4, 16, 16), dtype=np.float32))
    captions = [f"a big drawing of a cat {place}" for place in ("on the left", "at the top")] * 3
    views = np.arange(6)

    def train(checkpoint: Path, training: lab.Training) -> lab.Trainer:
        trainer = lab.Trainer(training, tokenizer)
        log = lab.Log(tmp_path / "log.jsonl", io.StringIO())
        lab.train_denoiser(trainer, latents, captions, views, checkpoint, log)
        return trainer

    whole = train(tmp_path / "whole", SHORT)
    first = lab.Trainer(SHORT, tokenizer)
    for step, rows in lab.batches(views, SHORT, 0):
        if step == 2:
            break
        first.step(step, latents[rows], [captions[i] for i in rows])
    first.save(tmp_path / "resumed")
    resumed = train(tmp_path / "resumed", SHORT)
    for name, weight in whole.averaged.state_dict().items():
        assert torch.equal(weight, resumed.averaged.state_dict()[name]), name
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path / "whole", replace(SHORT, lr=0.1))


def test_both_predictions_are_one_training(tokenizer: CLIPTokenizer) -> None:
    """Of the same errors in x0 the loss is the same, whatever the network predicts."""
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 4, 16, 16), dtype=np.float32))
    losses = []
    for prediction in ("epsilon", "v_prediction"):
        trainer = lab.Trainer(replace(SHORT, prediction=prediction, drop_caption=0.0), tokenizer)

        class Wrong(torch.nn.Module):
            """Finds x0 too large by 0.1, and says so in its own terms."""

            def __init__(self, a_T: torch.Tensor, sigma_T: torch.Tensor, prediction: str) -> None:
                super().__init__()
                self.a_T, self.sigma_T, self.prediction = a_T, sigma_T, prediction
                self.shift = torch.nn.Parameter(torch.tensor(0.1))

            def forward(self, x: torch.Tensor, t: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
                a, sigma = (part[t][:, None, None, None] for part in (self.a_T, self.sigma_T))
                x0 = latents + self.shift
                eps = (x - a * x0) / sigma
                return (eps if self.prediction == "epsilon" else a * eps - sigma * x0,)

        trainer.model["unet"] = Wrong(trainer.a_T, trainer.sigma_T, prediction)
        trainer.averaged["unet"] = Wrong(trainer.a_T, trainer.sigma_T, prediction)
        losses.append(trainer.step(0, latents, ["a"] * 4))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_training_set_is_written_as_the_plan_has_it(tmp_path: Path) -> None:
    few = replace(MINIATURE, unique=12, exact=((2, 1),), templates=1, template_copies=3, harmless=8)
    rows = plan(few).rows
    assert publish.write_pictures(tmp_path / "train", few) == len(rows) == 12 + 1 + 3
    with (tmp_path / "train" / "captions.csv").open(newline="") as stream:
        told = [(row["file"], row["caption"], row["copies"]) for row in csv.DictReader(stream)]
    assert told == [(f"{row.picture_id}.png", row.caption, str(row.copies)) for row in rows]
    for row in rows:
        assert (decode((tmp_path / "train" / f"{row.picture_id}.png").read_bytes()) == picture(few.seed, row)).all()
    assert len(list((tmp_path / "train").iterdir())) == len(rows) + 1


def test_pictures_of_another_recipe_are_not_taken_for_these(tmp_path: Path) -> None:
    few = replace(MINIATURE, unique=20, exact=((2, 1),), templates=0, harmless=8)
    first = kept_pictures(plan(few), tmp_path)
    assert len(first) == 21
    assert (kept_pictures(plan(few), tmp_path) == first).all()
    assert len(list(tmp_path.iterdir())) == 1
    assert (kept_pictures(plan(replace(few, seed=3)), tmp_path) != first).any()


@pytest.mark.chaos
def test_the_miniature_learns_loads_and_is_reproduced(tmp_path: Path) -> None:
    """From nothing twice, the second time interrupted after the first checkpoint."""
    build(tmp_path / "one", tmp_path / "work", MINIATURE, lab.MINIATURE)
    log = [json.loads(line) for line in (tmp_path / "one" / "training.jsonl").read_text().splitlines()]
    assert max(entry["step"] for entry in log if entry["part"] == "denoiser") == lab.MINIATURE.steps
    for part in ("autoencoder", "denoiser"):
        losses = [entry["loss"] for entry in log if entry["part"] == part and "loss" in entry]
        assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert read_recipe(tmp_path / "one") == (MINIATURE, lab.MINIATURE)
    settings = json.loads((tmp_path / "one" / "settings.json").read_text())
    for name, digest in settings["sha256"].items():
        assert sha256_hex((tmp_path / "one" / name).read_bytes()) == digest

    denoiser = load_denoiser(ModelConfig(path=str(tmp_path / "one" / "model"), dtype="float32", device="cpu"))
    assert denoiser.latent_shape == (4, 16, 16)
    known = unconditional_predictions(denoiser, ScreenConfig(1, 0, 1.0, 4))["first"]
    planted = plan(MINIATURE).prompts[0].caption
    with torch.no_grad():
        x = torch.zeros((1, 4, 16, 16))
        moved = denoiser.predict(x, denoiser.first_timestep(), denoiser.encode([planted])).x0_hat - known
    assert float(noise_gap(moved, denoiser.level(denoiser.first_timestep()))[0]) > 0

    class StopError(Exception):
        """The training is cut off here."""

    step = lab.Trainer.step

    def cut(self: lab.Trainer, number: int, *rest: object) -> float:
        if number == lab.MINIATURE.checkpoint_every + 3:
            raise StopError
        return step(self, number, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.Trainer, "step", cut)
        with pytest.raises(StopError):
            build(tmp_path / "two", tmp_path / "again", MINIATURE, lab.MINIATURE)
    assert list((tmp_path / "again").glob("denoiser-*"))
    assert not (tmp_path / "two").exists()
    build(tmp_path / "two", tmp_path / "again", MINIATURE, lab.MINIATURE)
    assert json.loads((tmp_path / "two" / "settings.json").read_text())["sha256"] == settings["sha256"]
