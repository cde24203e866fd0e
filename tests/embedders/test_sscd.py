"""SSCD: one network in three forms of file, the published preparations, and no weights that nobody vouches for.

No published weights are here: the networks are of the published shapes, with random weights.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms

from sharpaudit.embedders import sscd
from sharpaudit.embedders.base import embedder, notes, open_embedder
from sharpaudit.embedders.preparation import Preparation
from sharpaudit.embedders.weights import LISTED, NAMED, Shelf
from sharpaudit.errors import UserError
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.index import open_index
from sharpaudit.matches.sources.base import ReferencePicture

NAME = "sscd-disc-mixup-320"
SMALL = Preparation(64, square=True)


def pictures(n: int = 3, height: int = 90, width: int = 70) -> list[np.ndarray]:
    """Of few, large tones, so that networks tell them apart."""
    random = np.random.default_rng(0)
    return [
        np.kron(random.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))
        for _ in range(n)
    ]


class Whole(torch.nn.Module):
    """As published in TorchScript and ONNX: with the last normalisation."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = network["backbone"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.backbone(x))


@pytest.fixture(scope="module")
def shelves(tmp_path_factory) -> dict[str, Shelf]:
    """A shelf for each form, with one network on all of them. Its running statistics are of real pictures, since a
    random network that was never normalised sees no difference."""
    torch.manual_seed(0)  # noqa: TID251 - initial weights come from the global generator
    network = sscd.new_network(sscd.MIXUP)
    seen = SMALL.scaled([SMALL.cut(p) for p in pictures(8)])
    with torch.no_grad():
        for _ in range(20):
            network["backbone"].train()(seen)
    whole = Whole(network).eval()
    found = {}
    for form in sscd.FORMS:
        path = tmp_path_factory.mktemp("weights") / f"sscd_disc_mixup{form}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if form == ".torchvision.pt":
                torch.save(network.state_dict(), path)
            elif form == ".torchscript.pt":
                torch.jit.trace(whole, seen).save(path)
            else:
                named = {"input_names": ["x"], "dynamic_axes": {"x": [0, 2, 3]}}
                torch.onnx.export(whole, (seen,), str(path), dynamo=False, **named)
        found[form] = Shelf(path.parent, (hashlib.sha256(path.read_bytes()).hexdigest(),))
    return found


@pytest.mark.parametrize("name", [NAME, "sscd-disc-mixup-288"])
def test_one_network_gives_the_same_vectors_from_all_forms(shelves, name):
    shown = [*pictures(2), *pictures(1, 64, 96)]
    rows = {form: open_embedder(embedder(name, shelf), 2, "cpu").describe(shown) for form, shelf in shelves.items()}
    reference = rows.pop(".torchvision.pt")
    assert reference.shape == (3, 512)
    assert np.abs(reference[0] - reference[1]).max() > 0.01
    for form, found in rows.items():
        assert np.abs(found - reference).max() < 1e-4, form
    assert len({embedder(name, shelf).digest for shelf in shelves.values()}) == 3


def test_a_picture_is_described_alone_as_among_others(shelves):
    described = open_embedder(embedder("sscd-disc-mixup-288", shelves[".torchvision.pt"]), 2, "cpu")
    shown = [pictures(1)[0], pictures(1, 80, 120)[0], pictures(2)[1]]
    together = described.describe(shown)
    for picture, row in zip(shown, together, strict=True):
        assert np.abs(described.describe([picture])[0] - row).max() < 1e-5


NORMALISED = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
OFFICIAL = {
    "sscd-disc-mixup-320": [transforms.Resize([320, 320]), transforms.ToTensor(), NORMALISED],
    "sscd-disc-mixup-288": [transforms.Resize(288), transforms.ToTensor(), NORMALISED],
    "sscd-disc-large-224-05": [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ],
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("size", [(90, 70), (333, 500), (1000, 301), (288, 288)])
def test_preparations_are_the_published_ones(name, size):
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = transforms.Compose(OFFICIAL[name])(transforms.functional.to_pil_image(picture))
    preparation = embedder_card(name).preparation
    found = preparation.scaled([preparation.cut(picture)])[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-6


def embedder_card(name: str) -> sscd.Sscd:
    return {card.name: card for card in (sscd.MIXUP_320, sscd.MIXUP_288, sscd.LARGE_224)}[name]


def test_networks_are_of_the_published_sizes():
    """25.6 million parameters of a ResNet50 and 44.2 of a ResNeXt101 32x4d, less the 1,000 classes' layers."""
    for model, trunk in ((sscd.MIXUP, 23_508_032), (sscd.LARGE, 42_128_704)):
        with torch.device("meta"):
            network = sscd.new_network(model)
        n = sum(p.numel() for p in network.parameters())
        assert n == trunk + 2048 * sscd.DIMENSIONS[model] + sscd.DIMENSIONS[model]


def test_an_index_tells_its_weights_and_is_searched_with_no_others(shelves, tmp_path):
    shelf, other = shelves[".torchvision.pt"], shelves[".torchscript.pt"]
    shown = [ReferencePicture(None, "set", None, str(i), encode_png(p)) for i, p in enumerate(pictures())]
    build_index(tmp_path / "index", NAME, shown, shelf=shelf, device="cpu")
    opened = open_index(tmp_path / "index", NAME, shelf)
    assert opened.weights == {
        "file": "sscd_disc_mixup.torchvision.pt",
        "sha256": shelf.sha256[0],
        "vouched_by": NAMED,
    }
    with pytest.raises(UserError, match=r"made with profile .*; similarities between profiles mean nothing"):
        open_index(tmp_path / "index", NAME, other)


def test_weights_that_nobody_vouches_for_are_not_opened(shelves, monkeypatch):
    for door in ("load", "jit.load"):
        monkeypatch.setattr(f"torch.{door}", lambda *given, **named: pytest.fail("weights were opened"))
    for shelf in shelves.values():
        digest = shelf.sha256[0]
        with pytest.raises(UserError, match=rf"has SHA-256 {digest}, which stands in no list; .*weights_sha256"):
            open_embedder(embedder(NAME, Shelf(shelf.folder, ("0" * 64,))))


def test_a_listed_digest_needs_no_word_of_the_user(shelves, monkeypatch):
    shelf = shelves[".torchvision.pt"]
    monkeypatch.setitem(sscd.LISTED, shelf.sha256[0], "a test")
    card = embedder(NAME, Shelf(shelf.folder))
    assert card.weights.vouched_by == LISTED
    assert notes(card)[0] == (
        f"embedder {NAME}: weights {card.weights.path}, SHA-256 {shelf.sha256[0]}, vouched for by the embedder's list"
    )
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) and source for digest, source in sscd.LISTED.items())


def test_a_digest_is_that_of_the_file_as_it_is_now(shelves, tmp_path):
    path = tmp_path / "sscd_disc_mixup.torchvision.pt"
    found = []
    for text in (b"one", b"two and more"):
        path.write_bytes(text)
        found.append(embedder(NAME, Shelf(tmp_path, (hashlib.sha256(text).hexdigest(),))).weights.sha256)
    assert found == [hashlib.sha256(text).hexdigest() for text in (b"one", b"two and more")]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(
        UserError, match=r'"sscd-disc-mixup-320" needs weights: put sscd_disc_mixup\.torchscript\.pt or'
    ):
        embedder(NAME)
    with pytest.raises(UserError, match=r"holds no sscd_disc_large\.torchscript\.pt or .*, the weights of embedder"):
        embedder("sscd-disc-large-224-05", Shelf(tmp_path))


@pytest.mark.parametrize("form", sscd.FORMS)
def test_a_file_that_is_something_else_is_one_line(form, tmp_path):
    path = tmp_path / f"sscd_disc_mixup{form}"
    path.write_bytes(b"nothing of the kind")
    shelf = Shelf(tmp_path, (hashlib.sha256(b"nothing of the kind").hexdigest(),))
    with pytest.raises(UserError, match=rf'{re.escape(path.name)}: not weights of embedder "{NAME}": .') as refused:
        open_embedder(embedder(NAME, shelf), 2, "cpu")
    assert "\n" not in str(refused.value)


def test_weights_of_the_other_network_are_refused(tmp_path):
    path = Path(tmp_path / "sscd_disc_large.torchvision.pt")
    torch.save(sscd.new_network(sscd.MIXUP).state_dict(), path)
    shelf = Shelf(tmp_path, (hashlib.sha256(path.read_bytes()).hexdigest(),))
    with pytest.raises(UserError, match="not weights of embedder"):
        open_embedder(embedder("sscd-disc-large-224-05", shelf), 2, "cpu")


def test_a_picture_in_which_the_network_sees_nothing_has_no_descriptor(shelves, monkeypatch):
    opened = open_embedder(embedder(NAME, shelves[".torchvision.pt"]), 2, "cpu")
    object.__setattr__(opened.inner, "network", lambda cut: torch.zeros(len(cut), 512))
    assert np.isnan(opened.describe(pictures(2))).all()


def test_memory_that_does_not_suffice_halves_the_batch_or_is_one_line(shelves):
    opened = open_embedder(embedder(NAME, shelves[".torchvision.pt"]), 4, "cpu")
    expected, sizes, network = opened.describe(pictures(4)), [], opened.inner.network

    def small(cut):
        sizes.append(len(cut))
        if len(cut) > most:
            raise torch.OutOfMemoryError
        return network(cut)

    object.__setattr__(opened.inner, "network", small)
    most = 2
    assert np.abs(opened.describe(pictures(4)) - expected).max() < 1e-5
    assert sizes == [4, 2, 2]
    most = 0
    with pytest.raises(UserError, match=r"a picture of 70 x 90 pixels does not fit the memory of the device"):
        opened.describe(pictures(1))


def test_a_strip_has_no_descriptor(shelves):
    opened = open_embedder(embedder("sscd-disc-mixup-288", shelves[".torchvision.pt"]), 2, "cpu")
    strip = np.zeros((2, 1000, 3), np.uint8)
    rows = opened.describe([strip, pictures(1)[0], strip.swapaxes(0, 1)])
    assert np.isnan(rows).all(axis=1).tolist() == [True, False, True]


def test_memory_that_torchscript_lacks_is_told_from_other_faults(shelves):
    opened = open_embedder(embedder(NAME, shelves[".torchvision.pt"]), 4, "cpu")
    for text, expected in (("CUDA out of memory. Tried", UserError), ("size mismatch", RuntimeError)):
        object.__setattr__(opened.inner, "network", lambda cut, text=text: (_ for _ in ()).throw(RuntimeError(text)))
        with pytest.raises(expected):
            opened.describe(pictures(1))


def test_a_network_with_other_vectors_is_refused(shelves):
    opened = open_embedder(embedder(NAME, shelves[".torchvision.pt"]), 4, "cpu")
    for width in (1, 1024):
        object.__setattr__(opened.inner, "network", lambda cut, width=width: torch.ones(len(cut), width))
        with pytest.raises(UserError, match=rf"its weights give \(1, {width}\), where \(1, 512\) is expected"):
            opened.describe(pictures(1))
