"""Recombined captions: of the corpus's words in the corpus's places, and none of its captions."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cli import cli
from sharpaudit.corpus.dedup import family_id
from sharpaudit.corpus.recombine import LEAST_CHANGED, recombine
from sharpaudit.errors import UserError


def hash_of(text: str) -> int:
    return int(family_id(text)[:8], 16)


GRAMMAR = [
    f"a {size} {style} of a {thing} {place}"
    for size, style, thing, place in product(
        ("small", "big", "huge"),
        ("drawing", "photo", "sticker"),
        ("fox", "bridge", "lamp", "boat"),
        ("at night", "by the sea", "in the rain"),
    )
]
CORPUS = [text for text in GRAMMAR if hash_of(text) % 2]
WORDS = st.lists(st.sampled_from(["red", "fox", "in", "the", "rain", "a,", "lamp"]), min_size=1, max_size=7)


def test_candidates_are_like_the_corpus_and_not_in_it() -> None:
    found = [candidate.text for candidate in recombine(CORPUS, 30, 0)]
    assert len(set(found)) == len(found) == 30
    assert not set(found) & set(CORPUS)
    assert {word for text in found for word in text.split()} <= {word for text in CORPUS for word in text.split()}
    # "by the rain" comes out too, of words that are neighbours somewhere; others are sentences of the grammar.
    assert sum(text in GRAMMAR for text in found) >= 5


@settings(deadline=None, max_examples=40)
@given(st.lists(WORDS.map(" ".join), min_size=2, max_size=30), st.integers(0, 5))
def test_every_neighbourhood_was_seen_and_every_family_is_new(captions: list[str], seed: int) -> None:
    try:
        found = recombine(captions, 10, seed)
    except UserError as error:
        assert "too few words" in str(error)
        return
    families = [family_id(candidate.text) for candidate in found]
    assert len(set(families)) == len(families)
    assert not set(families) & {family_id(caption) for caption in captions}
    pairs = {pair for caption in captions for pair in zip(["", *caption.split()], [*caption.split(), ""], strict=True)}
    for candidate in found:
        words = candidate.text.split()
        assert set(zip(["", *words], [*words, ""], strict=True)) <= pairs
        assert LEAST_CHANGED <= candidate.changed <= 1


def test_the_same_seed_gives_the_same_and_another_seed_gives_others() -> None:
    assert recombine(CORPUS, 12, 3) == recombine(CORPUS, 12, 3) != recombine(CORPUS, 12, 4)


def test_a_corpus_without_common_words_is_refused() -> None:
    with pytest.raises(UserError, match="share too few words"):
        recombine(["alpha beta", "gamma delta", "epsilon"], 5, 0)


def test_no_more_than_there_are() -> None:
    found = recombine(["a red fox ran", "the red owl hid"], 50, 0)
    assert sorted(candidate.text for candidate in found) == ["a red owl hid", "the red fox ran"]


def test_the_command_writes_a_file_that_calibrates(tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.csv", tmp_path / "harmless.csv"
    source.write_text(
        "id;Caption\n" + "".join(f"{i};{caption}\n" for i, caption in enumerate([*CORPUS, "", CORPUS[0]]))
    )
    call = [
        "calibration",
        "make",
        str(source),
        "--out",
        str(out),
        "--column",
        "Caption",
        "--delimiter",
        ";",
        "--n",
        "20",
    ]
    done = CliRunner().invoke(cli, call)
    assert done.exit_code == 0, done.exception
    assert f"20 candidates from {len(CORPUS)} captions" in done.output
    with out.open(newline="") as stream:
        assert [row["prompt"] for row in csv.DictReader(stream)] == [c.text for c in recombine(CORPUS, 20, 0)]
    again = CliRunner().invoke(cli, call)
    assert "exists already" in str(again.exception)
    source.write_text("id;Caption\n1;a red fox ran\n2;the red owl hid\n")
    few = CliRunner().invoke(cli, [*call[:4], str(tmp_path / "few.csv"), *call[5:]])
    assert "2 candidates from 2 captions" in few.output
    assert "no more combinations, 20 were asked for" in few.output
