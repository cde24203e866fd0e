"""Towers of CLIP models from a folder: prepared as their config says, in one space, and nothing guessed.

The model is of open_clip's own code, small, with random weights: no published ones are here.
"""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sharpaudit.config import MatchesConfig
from sharpaudit.embedders.base import embedder, open_embedder
from sharpaudit.embedders.weights import NAMED, Shelf
from sharpaudit.errors import UserError
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.index import open_index
from sharpaudit.matches.sources.base import ReferencePicture

NAME = "open_clip:toy"
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
PREPARED = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.3, 0.2, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "size": 32,
    "mode": "RGB",
    "fill_color": 0,
}
CONFIG = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": PREPARED}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Shelf:
    folder = tmp_path_factory.mktemp("weights") / "open_clip/toy"
    folder.mkdir(parents=True)
    torch.manual_seed(0)  # noqa: TID251 - initial weights come from the global generator
    model = open_clip.model.CLIP(**CONFIG["model_cfg"])
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        weights := folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    return Shelf(folder.parents[1], (hashlib.sha256(weights.read_bytes()).hexdigest(),))


def changed(shelf: Shelf, tmp_path, config) -> Shelf:
    shutil.copytree(shelf.folder, tmp_path / "weights")
    (tmp_path / "weights/open_clip/toy/open_clip_config.json").write_text(
        config if isinstance(config, str) else json.dumps(config)
    )
    return Shelf(tmp_path / "weights", shelf.sha256)


def noise(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_vectors_are_those_of_open_clip_with_the_preparation_of_the_config(shelf, tmp_path, mode):
    here = changed(shelf, tmp_path, CONFIG | {"preprocess_cfg": PREPARED | {"resize_mode": mode}})
    shown = [noise(1), noise(2, 32, 32), noise(3, 90, 33)]
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{here.folder}/open_clip/toy")
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([prepare(Image.fromarray(p)) for p in shown]), normalize=True)
    found = open_embedder(embedder(NAME, here), 2, "cpu").describe(shown)
    assert found.shape == (3, 24)
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_texts_lie_in_the_space_of_pictures(shelf):
    texts = ["an owl on a green hill", "a red house", "a boat"]
    card = embedder(NAME, shelf)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{shelf.folder}/open_clip/toy")
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.tokenize(texts, 16), normalize=True).numpy()
    found = open_embedder(card, 2, "cpu").describe_texts(texts)
    assert card.texts
    assert np.abs(found - expected).max() < 1e-5


def test_an_index_of_it_is_opened_by_its_name_and_weights(shelf, tmp_path):
    shown = [ReferencePicture(None, "set", None, str(i), encode_png(noise(i))) for i in range(3)]
    build_index(tmp_path / "index", NAME, shown, shelf=shelf, device="cpu")
    opened = open_index(tmp_path / "index", NAME, shelf)
    assert opened.weights == {"file": "open_clip_model.safetensors", "sha256": shelf.sha256[0], "vouched_by": NAMED}
    assert opened.embedder.name == NAME
    prepared = CONFIG | {"preprocess_cfg": PREPARED | {"interpolation": "bilinear"}}
    with pytest.raises(UserError, match=r"made with profile \"open_clip:toy\" version 1"):
        open_index(tmp_path / "index", NAME, changed(shelf, tmp_path, prepared))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_cfg": CONFIG["model_cfg"]}, "not a config of open_clip, which has model_cfg"),
        ({"preprocess_cfg": PREPARED}, "not a config of open_clip"),
        ("no json", "not a config of open_clip"),
        (
            CONFIG | {"preprocess_cfg": {"size": 32, "std": [1, 1, 1]}},
            "preprocess_cfg without mean and interpolation and resize_mode; nothing of it is guessed",
        ),
        (CONFIG | {"model_cfg": CONFIG["model_cfg"] | {"embed_dim": "many"}}, "an embed_dim that is no number"),
    ],
)
def test_a_config_that_does_not_say_how_is_refused(shelf, tmp_path, config, says):
    with pytest.raises(UserError, match=rf"open_clip_config\.json: {says}"):
        embedder(NAME, changed(shelf, tmp_path, config))


def test_weights_of_another_model_are_refused(shelf, tmp_path):
    other = CONFIG | {"model_cfg": CONFIG["model_cfg"] | {"vision_cfg": VISION | {"width": 96}}}
    with pytest.raises(UserError, match="open_clip cannot read this model: "):
        open_embedder(embedder(NAME, changed(shelf, tmp_path, other)), 2, "cpu")


def test_a_folder_without_config_and_a_name_without_model_are_one_line(shelf, tmp_path):
    here = changed(shelf, tmp_path, CONFIG)
    (here.folder / "open_clip/toy/open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"open_clip_config\.json: cannot read the config of this model: No such file"):
        embedder(NAME, here)
    with pytest.raises(UserError, match=r"needs weights: put open_clip/toy/open_clip_model\.safetensors into"):
        embedder(NAME)
    for name in ("open_clip", "open_clip:", "open_clip:../toy", "open_clip:a/b"):
        for use in (embedder, lambda profile: MatchesConfig(index="i", profiles=[profile])):
            with pytest.raises((UserError, ValueError), match='for instance "open_clip:ViT-B-32"'):
                use(name)
    with pytest.raises(UserError, match=r'embedder "pixels-16" comes in one form: leave out ":8"'):
        embedder("pixels-16:8")
