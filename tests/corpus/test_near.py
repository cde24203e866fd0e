"""Near-duplicate families, held against every pair compared: nothing alike is missed, nothing unlike is joined."""

from __future__ import annotations

import random
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from sharpaudit.corpus.dedup import normal_text
from sharpaudit.corpus.near import MIN_FOUND, N_HASHES, band_keys, pieces_of, rows_per_band
from sharpaudit.corpus.rows import Source
from tests.corpus.test_assign import assigned, ingested, knows, statuses

SENTENCE = "a red green photo of the old harbour fox drawing quiet river with seven boats under snow morning light"
WORDS = SENTENCE.split(" ")


def captions(n: int, seed: int = 0) -> list[str]:
    """Random sentences, each with one or two relatives that differ in a letter, a word or nothing but case."""
    draw, made = random.Random(seed), []
    for _ in range(n):
        words = draw.choices(WORDS, k=draw.randint(4, 14))
        made.append(" ".join(words))
        i = draw.randrange(len(words))
        made.append(" ".join([*words[:i], words[i] + draw.choice(["s", "", "x"]), *words[i + 1 :]]))
        made.append(" ".join([*words[:i], draw.choice(WORDS), *words[i + 1 :]]).upper() + "!")
    return list(dict.fromkeys(made))


def grams(text: str) -> set[str]:
    text = normal_text(text)
    return {text[i : i + 4] for i in range(max(1, len(text) - 3))}


def jaccard(a: str, b: str) -> float:
    one, other = grams(a), grams(b)
    return len(one & other) / len(one | other)


def connected(prompts: list[str], threshold: float) -> dict[str, int]:
    """The component of each prompt, by comparing every pair."""
    component = {prompt: i for i, prompt in enumerate(prompts)}
    for a, b in combinations(prompts, 2):
        if jaccard(a, b) >= threshold and component[a] != component[b]:
            old, new = component[a], component[b]
            component |= {p: new for p, c in component.items() if c == old}
    return component


def families(folder: Path, prompts: list[str], near: float | None = 0.8) -> dict[str, str]:
    rows = ingested(folder, near=near, audit=prompts).corpus["audit"].to_pylist()
    return {row["prompt"]: row["family_id"] for row in rows}


def template(n: int, seed: int = 0) -> list[str]:
    """Captions of one template with one to three words changed, so that chains of alike ones are long."""
    draw, base = random.Random(seed), SENTENCE.split(" ")[:12]
    made = []
    for _ in range(n):
        words = base.copy()
        for i in draw.sample(range(len(words)), draw.randint(1, 3)):
            words[i] = draw.choice(WORDS)
        made.append(" ".join(words))
    return list(dict.fromkeys(made))


@pytest.mark.parametrize("threshold", [0.7, 0.85])
def test_chains_of_alike_captions_are_one_family(tmp_path: Path, threshold: float) -> None:
    prompts = template(150)
    found, truth = families(tmp_path, prompts, threshold), connected(prompts, threshold)
    pairs = list(combinations(prompts, 2))
    together = {(a, b) for a, b in pairs if truth[a] == truth[b]}
    joined = {(a, b) for a, b in pairs if found[a] == found[b]}
    assert joined <= together
    assert len(joined) >= 0.97 * len(together) > 20


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_families_are_what_alike_pairs_connect(tmp_path: Path, threshold: float) -> None:
    prompts = captions(50)
    found, truth = families(tmp_path, prompts, threshold), connected(prompts, threshold)
    together = [(a, b) for a, b in combinations(prompts, 2) if truth[a] == truth[b]]
    joined = [(a, b) for a, b in combinations(prompts, 2) if found[a] == found[b]]
    assert len(together) > 10
    # None that no chain of alike pairs connects; of the pairs at the very threshold one in a hundred may be missed.
    assert set(joined) <= set(together)
    assert len(joined) >= 0.97 * len(together)


def test_the_order_of_the_rows_changes_no_family(tmp_path: Path) -> None:
    prompts = captions(30, seed=1)
    once = families(tmp_path, prompts)
    assert len(set(once.values())) < len(set(families(tmp_path, prompts, near=None).values()))
    for seed in range(3):
        shuffled = prompts.copy()
        random.Random(seed).shuffle(shuffled)
        # A family is named after the smallest of its members' ids, not after the first that was met.
        assert families(tmp_path, shuffled) == once


def test_a_harmless_prompt_like_an_audited_one_does_not_calibrate(tmp_path: Path) -> None:
    harmless = [*(f"{a} {b} {i}" for i, (a, b) in enumerate(combinations(WORDS[:9], 2))), "The old harbours at night."]
    made = ingested(tmp_path, near=0.7, audit=["the old harbour at night"], harmless=harmless)
    assert statuses(made, "harmless")[-1] == "in_audit"
    assert statuses(ingested(tmp_path, audit=["the old harbour at night"], harmless=harmless), "harmless")[-1] == "ok"


def test_a_new_prompt_joins_a_known_family_and_known_families_never_merge(tmp_path: Path) -> None:
    ends = ["the quiet river with seven boats", "the quiet river with seven boats under snow"]
    first = ingested(tmp_path, audit=ends)
    known = {row["prompt"]: row["family_id"] for row in first.corpus["audit"].to_pylist()}
    assert len(set(known.values())) == 2
    middle, apart = "the quiet river with seven boats und", "morning light"
    second = ingested(tmp_path, knows(first), near=0.7, audit=[middle, apart, *ends])
    found = {row["prompt"]: row["family_id"] for row in second.corpus["audit"].to_pylist()}
    assert min(jaccard(middle, end) for end in ends) >= 0.7
    assert found[middle] == min(known.values())
    assert found[apart] not in known.values()
    assert set(found) == {middle, apart}


def test_families_that_the_user_named_do_not_merge_and_others_join_them(tmp_path: Path) -> None:
    """Read together or one after the other."""
    path = tmp_path / "p.csv"
    path.write_text(
        "prompt,f\na red fox in snow,one\na red fox in snow!,two\na red fox in the snow,\na blue harbour,\n"
    )
    source = Source("audit:p.csv", "audit", path, family_column="f")
    whole = assigned([(source, 0, None)], near=0.5).corpus["audit"]["family_id"].to_pylist()
    first = assigned([(source, 0, 2)], near=0.5)
    later = assigned([(source, 2, None)], knows(first), near=0.5).corpus["audit"]["family_id"].to_pylist()
    assert first.corpus["audit"]["family_id"].to_pylist() + later == whole
    assert whole[0] != whole[1]
    assert whole[2] == min(whole[:2])
    assert whole[3] not in whole[:3]


CHAIN = [
    "the quiet river with seven boats under snow",
    "the quiet river with seven boats under ice and",
    "the quiet river with seven boats red ice and",
    "the quiet river with nine boats red ice and",
    "the loud old river with nine boats red ice and",
]


def test_what_stands_for_nothing_in_the_corpus_is_still_not_audited_later(tmp_path: Path) -> None:
    """One of a chain of alike prompts calibrates; in a later call all of them come again, written otherwise."""
    assert all(jaccard(a, b) >= 0.6 for a, b in pairwise(CHAIN))
    assert jaccard(CHAIN[0], CHAIN[-1]) < 0.4
    fit = [f"{a} {b} {i}" for i, (a, b) in enumerate(combinations(WORDS[:9], 2))]
    first = ingested(tmp_path, near=0.6, fit=fit, calibration=CHAIN)
    assert len(first.corpus["calibration"]) == 1
    assert len(first.represented) == len(CHAIN) - 1
    for represented, wanted in ((first.represented, {"in_calibration"}), ((), {"in_calibration", "ok"})):
        audit = [f"{prompt.upper()}!" for prompt in CHAIN]
        second = ingested(tmp_path, knows(first), near=0.6, represented=represented, audit=audit)
        assert set(statuses(second, "audit")) == wanted


def test_pieces_are_the_letters_of_the_text() -> None:
    texts = ["", "a", "abcd", "abcabcabc", "das 😀 lacht", "x" * 40]
    pieces, offsets = pieces_of(texts)
    found = [set(pieces[a:b].tolist()) for a, b in pairwise(offsets.tolist())]
    plain = [{text[i : i + 4] for i in range(max(1, len(text) - 3))} for text in texts]
    assert [len(hashes) for hashes in found] == [len(of_text) for of_text in plain]
    for (i, a), (j, b) in combinations(enumerate(found), 2):
        assert len(a & b) == len(plain[i] & plain[j])


def test_a_band_has_as_many_rows_as_the_threshold_bears() -> None:
    for threshold in (0.3, 0.5, 0.8, 0.95, 1.0):
        r = rows_per_band(threshold)
        assert 1 - (1 - threshold**r) ** (N_HASHES // r) >= MIN_FOUND or r == 1
        wider = r + 1
        assert wider > N_HASHES or 1 - (1 - threshold**wider) ** (N_HASHES // wider) < MIN_FOUND
    same, other = band_keys(["a quiet river", "a quiet river"], 0.8), band_keys(["seven boats under snow"], 0.8)
    assert np.array_equal(same[0], same[1])
    assert not np.any(same[0] == other[0])
