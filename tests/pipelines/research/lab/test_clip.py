"""The lab's CLIP: shown nothing that a prompt of the lab is about, resumed as if never stopped, read by open_clip."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from pipelines.research.lab import clip
from pipelines.research.lab.captions import Family
from pipelines.research.lab.tokenizer import write_tokenizer
from pipelines.research.lab.training import Log
from pipelines.research.lab.trainingset import MINIATURE, Recipe, plan
from sharpaudit.errors import UserError

SHORT = replace(clip.MINIATURE, batch=4, steps=3, held_out=6, checkpoint_every=2, log_every=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("clip") / "tokenizer"
    write_tokenizer(folder, plan(MINIATURE).captions)
    return CLIPTokenizer.from_pretrained(folder)


def test_no_prompt_of_the_lab_is_shown_and_none_that_is_shown_is_held_out() -> None:
    shown, held = clip.pairs(Recipe(), clip.Training())
    prompts = {replace(prompt.family, colour="") for prompt in plan(Recipe()).prompts}
    for some in (shown, held):
        assert prompts.isdisjoint(some.plain)
        assert {replace(family, colour="") for family in some.coloured} == set(some.plain)
        assert len(some.coloured) == 10 * len(some.plain)
    assert set(shown.plain).isdisjoint(held.plain)
    assert 100 < len(held.plain) < len(shown.plain) / 10


def test_pairs_are_drawn_by_name_and_number() -> None:
    shown, _ = clip.pairs(MINIATURE, clip.MINIATURE)
    families, pictures, captions = shown.drawn("shown", 3, 5)
    again = shown.drawn("shown", 3, 5)
    assert (families, captions) == (again[0], again[2])
    assert (pictures == again[1]).all()
    assert pictures.shape == (5, 64, 64, 3)
    assert [bool(family.colour) for family in families] == [False, True, False, True, False]
    assert all(family.thing.split()[-1] in caption for family, caption in zip(families, captions, strict=True))
    assert shown.drawn("shown", 4, 5)[2] != captions


def test_a_resumed_training_is_as_if_never_stopped(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    shown, _ = clip.pairs(MINIATURE, SHORT)

    def train(state: Path, training: clip.Training) -> clip.Trainer:
        trainer = clip.Trainer(training, tokenizer)
        clip.train(trainer, shown, state, Log(tmp_path / "log.jsonl", io.StringIO()))
        return trainer

    whole = train(tmp_path / "whole", SHORT)
    first = clip.Trainer(SHORT, tokenizer)
    for step in range(2):
        _, pictures, captions = shown.drawn("shown", step, SHORT.batch)
        first.step(step, pictures, captions)
    first.save(tmp_path / "resumed")
    resumed = train(tmp_path / "resumed", SHORT)
    assert resumed.steps_done == SHORT.steps
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path / "whole", replace(SHORT, lr=0.1))


def test_what_is_written_is_what_was_trained(tmp_path: Path) -> None:
    clip.build(tmp_path / "weights", tmp_path / "work", MINIATURE, SHORT)
    inner = tmp_path / "weights/open_clip/lab"
    trainer = clip.Trainer(SHORT, CLIPTokenizer.from_pretrained(inner))
    state = next(file for file in (tmp_path / "work").glob("clip-*") if not file.suffix)
    trainer.load(state)
    _, held = clip.pairs(MINIATURE, SHORT)
    _, pictures, captions = held.drawn("held out", 0, 6)
    describer = clip.opened(tmp_path / "weights")
    with torch.no_grad():
        seen = trainer.model.eval().encode_image(clip.to_tensor(pictures), normalize=True).numpy()
        told = trainer.tokenizer(captions, padding="max_length", max_length=24)["input_ids"]
        said = trainer.model.encode_text(torch.tensor(told), normalize=True).numpy()
    # Weights are in float16, and open_clip turns a picture's bytes into floats in its own order.
    assert np.abs(describer.describe(list(pictures)) - seen).max() < 5e-3
    assert np.abs(describer.describe_texts(captions) - said).max() < 5e-3
    known = json.loads((tmp_path / "weights/training.json").read_text())
    assert known["held out"]["retrieval"]["n"] == 6
    assert known["training"]["steps"] == 3


class Knowing:
    """Describes a caption by what it says, and a picture by the caption at its place; `blind` parts are not seen."""

    def __init__(self, captions: list[str], blind: str) -> None:
        self.captions, self.blind, self.words = captions, blind, {}

    def _row(self, caption: str) -> np.ndarray:
        row = np.zeros(256, dtype=np.float32)
        for word in caption.replace(",", "").split():
            if word not in self.blind.split():
                row[self.words.setdefault(word, len(self.words))] = 1
        return row / np.linalg.norm(row)

    def describe(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack([self._row(self.captions[i]) for i in range(len(images))])

    def describe_texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([self._row(text) for text in texts])


def test_what_alignment_sees_and_what_it_does_not() -> None:
    _, held = clip.pairs(Recipe(), clip.Training())
    captions = held.drawn("held out", 0, 60)[2]
    keen = clip.told_apart(Knowing(captions, blind=""), held, 60)
    assert keen["retrieval"]["caption of a picture, among 1"] > 0.9
    assert min(keen["one part changed"].values()) > 0.9
    blind = clip.told_apart(Knowing(captions, blind="small big huge"), held, 60)
    assert blind["one part changed"]["size"] == 0, "equal is not nearer"
    assert blind["one part changed"]["thing"] > 0.9


def test_a_changed_part_is_another_value_of_that_part() -> None:
    families = [Family("cat", "big", "at the top", "sticker"), Family("owl", "huge", "on the left", "cutout", "red")]
    found = dict(clip._changes(families, 0))
    assert set(found) == {"thing", "size", "place", "style", "colour"}
    assert [i for i, _, _ in found["colour"]] == [1], "a caption without a colour has none to change"
    for part, rows in found.items():
        for i, other, _ in rows:
            assert replace(other, **{part: getattr(families[i], part)}) == families[i] != other
