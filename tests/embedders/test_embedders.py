"""A card is enough to compare indexes; an open embedder gives what its card promises, or is refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.stages.search import SampleSearch
from sharpaudit.embedders.base import Describer, Needs, embedder, notes, open_embedder
from sharpaudit.errors import UserError
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.index import open_index
from sharpaudit.matches.search.flat import search
from sharpaudit.matches.sources.base import ReferencePicture
from sharpaudit.plugs import EMBEDDERS
from tests.support.toys import EMBEDDER, MeanColour, MeanColourEmbedder

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def plain(colour: str) -> np.ndarray:
    return np.full((8, 8, 3), COLOURS[colour], np.uint8)


@pytest.fixture
def added():
    EMBEDDERS.add(EMBEDDER)
    yield EMBEDDER
    EMBEDDERS.remove(EMBEDDER.name)


@pytest.fixture
def index(tmp_path, added):
    pictures = [ReferencePicture(None, "set", None, name, encode_png(plain(name))) for name in COLOURS]
    build_index(tmp_path / "index", "mean-colour", pictures)
    return tmp_path / "index"


def test_an_embedder_of_another_package_is_one_declaration(index):
    opened = open_index(index, "mean-colour")
    assert (opened.vectors.whole().shape, opened.embedder.digest) == ((3, 4), EMBEDDER.digest)
    found = SampleSearch(opened, 2).nearest([plain("blue"), plain("red")], 1)
    assert [neighbours[0].reference_id for neighbours in found] == [opened.reference_id(2), opened.reference_id(0)]
    queries = open_embedder(EMBEDDER).describe_texts(["a green hill", "a red, red rose"])
    assert search(opened.vectors, queries, 1)[1].tolist() == [[1], [0]]


def test_cards_are_compared_without_opening_one(index, monkeypatch):
    monkeypatch.setattr(MeanColourEmbedder, "open", lambda *named: pytest.fail("weights were loaded"))
    open_index(index, "mean-colour")
    with pytest.raises(UserError, match=r'made with profile "mean-colour" version 1 .* but "pixels-16" version 1'):
        open_index(index, "pixels-16")
    monkeypatch.setattr(MeanColourEmbedder, "digest", "other weights")
    with pytest.raises(UserError, match=r'version 1 \(mean col\), but "mean-colour" version 1 \(other we\)'):
        open_index(index, "mean-colour")


def test_an_unknown_embedder_is_named_before_anything_is_read(tmp_path):
    for use in (lambda: build_index(tmp_path / "index", "pixels-61", ()), lambda: embedder("pixels-61")):
        with pytest.raises(UserError, match=r'no embedder is called "pixels-61" \(did you mean "pixels-16"\?\)'):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cuda", [True, False])
def test_it_gets_the_device_that_there_is_and_the_batch_that_was_asked_for(index, tmp_path, monkeypatch, cuda):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(MeanColourEmbedder, "open", lambda self, *how: given.append(how) or MeanColour())
    open_embedder(EMBEDDER)
    build_index(
        tmp_path / "again",
        "mean-colour",
        [ReferencePicture(None, "set", None, "red", encode_png(plain("red")))],
        None,
        batch_size=7,
    )
    SampleSearch(open_index(index, "mean-colour"), 9, vectors="disk")
    device = torch.device("cuda" if cuda else "cpu")
    assert given == [(device, 64), (device, 7), (device, 9)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.ones((2, 4)), r"gave float64 \(2, 4\), where float32 \(2, 4\) is expected"),
        (np.ones((2, 3), np.float32), r"gave float32 \(2, 3\), where"),
        (np.ones((1, 4), np.float32), r"gave float32 \(1, 4\), where"),
        (torch.ones(2, 4), "gave Tensor, where"),
        (np.ones((2, 4), np.float32), "gave a row of length 2; rows have length 1, or are NaN"),
        (np.zeros((2, 4), np.float32), "gave a row of length 0;"),
    ],
)
def test_rows_that_the_card_does_not_promise_are_refused(monkeypatch, rows, says):
    monkeypatch.setattr(MeanColour, "describe", lambda self, images: rows)
    monkeypatch.setattr(MeanColour, "describe_texts", lambda self, texts: rows)
    opened = open_embedder(EMBEDDER)
    for use, given in ((opened.describe, [plain("red")] * 2), (opened.describe_texts, ["red"] * 2)):
        with pytest.raises(UserError, match=f'embedder "mean-colour" {says}'):
            use(given)


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_that_of_a_picture_without_a_descriptor(monkeypatch, added, tmp_path, nothing):
    def describe(self, images):
        rows = np.tile(np.float32([1, 0, 0, 0]), (len(images), 1))
        rows[[image[0, 0, 0] == 250 for image in images], 1] = nothing
        return rows

    monkeypatch.setattr(MeanColour, "describe", describe)
    pictures = [ReferencePicture(None, "set", None, name, encode_png(plain(name))) for name in COLOURS]
    assert build_index(tmp_path / "index", "mean-colour", pictures).statuses == {"no_descriptor": 1, "ok": 2}


def test_one_that_describes_no_texts_says_so():
    class Pictures(Describer):
        def describe(self, images):
            return np.empty((0, 768), np.float32)

    for describer in (Pictures(), open_embedder(embedder("pixels-16"))):
        with pytest.raises(ValueError, match="describes no texts"):
            describer.describe_texts(["a cat"])


def test_what_it_needs_is_told_and_a_package_that_is_missing_refused(monkeypatch):
    assert notes(embedder("pixels-16")) == []
    needs = Needs(("no_such_package",), "weights: sscd.pt beside the index", 3 * 2**29)
    monkeypatch.setattr(MeanColourEmbedder, "needs", needs)
    monkeypatch.setattr(MeanColourEmbedder, "licence", "no licence of its own")
    assert notes(EMBEDDER) == [
        "embedder mean-colour: no licence of its own",
        "embedder mean-colour: weights: sscd.pt beside the index",
        "embedder mean-colour: takes about 1.5 GiB of the device's memory",
    ]
    with pytest.raises(UserError, match='embedder "mean-colour" needs the package no_such_package, which is not inst'):
        open_embedder(EMBEDDER)
    monkeypatch.setattr(MeanColourEmbedder, "needs", replace(needs, packages=("torch",)))
    open_embedder(EMBEDDER)


def test_the_batch_changes_no_byte_of_an_index(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    pictures = [ReferencePicture(None, "set", None, str(i), encode_png(image)) for i, image in enumerate(drawn)]
    made = [build_index(tmp_path / str(n), "pixels-16", pictures, batch_size=n).digest for n in (1, 64)]
    assert made[0] == made[1]
