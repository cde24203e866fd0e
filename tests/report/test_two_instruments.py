"""What the report says where a second instrument verifies what the first finds."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import pytest

from sharpaudit.report.html import render
from tests.support.handmade import Rows

Facts = Callable[..., dict[str, Any]]
VERIFIED = {"a0": 0.9, "a1": 0.95, "a5": 0.4, "f0": 0.3, "f1": 0.6, "k0": 0.9}
"""By the second instrument, of the second picture; the first pictures were not described by it."""


@pytest.fixture
def both(rows: Rows) -> Rows:
    """a0 lies above both lines (.7 and .5), a5 above the first alone, of a1 the second neighbour above both."""
    rows["bands"][0].update(verified_by="other", copy_above=0.7, verified_above=0.5, near_above=0.6)
    for row in list(rows["matches"]):
        row.update(verified_by="other", verified_similarity=None, band="near" if row["similarity"] > 0.6 else "none")
        name, seed = row["sample_id"].split("-")[1:]
        if seed == "1":
            row.update(verified_similarity=VERIFIED.get(name, 0.2))
        if name == "a0" and seed == "1":
            row.update(band="copy")
        if name == "a1" and seed == "1":
            second = {"rank": 2, "reference_id": "r-second", "similarity": 0.75, "verified_similarity": 0.95}
            row.update(similarity=0.9, verified_similarity=0.1, band="near")
            rows["matches"].append(row | second | {"band": "copy"})
    return rows


def page_of(facts: dict[str, Any]) -> str:
    def no_pictures(path: str) -> bytes:
        raise AssertionError(f"{path}: pictures are hidden")

    return html.unescape(render(facts, no_pictures))


def test_a_finding_lies_above_both_lines_whichever_neighbour_it_is(both: Rows, facts: Facts) -> None:
    found = facts(both)["findings"]["rows"]
    assert {(row["prompt_id"], row["best_reference_id"], row["best_verified"]) for row in found} == {
        ("a0", "r-a0-1", 0.9),
        ("a1", "r-second", 0.95),
    }
    assert {row["n_copies"] for row in found} == {1}


def test_groups_lines_and_instruments_count_the_same_pairs(both: Rows, facts: Facts) -> None:
    told = facts(both)
    assert (told["copies"]["flagged"]["copied"], told["copies"]["controls"]["copied"]) == (2, 0)
    (line,) = told["bands"]["lines"]
    assert (line["copy_above"], line["verified_above"], line["flagged"], line["controls"]) == (0.7, 0.5, 2, 0)
    first, second = told["bands"]["alone"]
    assert (first["profile"], first["copy_above"], first["flagged"], first["controls"]) == ("px", 0.8, 2, 1)
    assert (second["profile"], second["copy_above"], second["flagged"], second["controls"]) == ("other", 0.6, 2, 0)
    assert told["bands"]["samples"] == {"copy": 2, "near": 1, "none": 9}


def test_the_page_says_what_each_saw(both: Rows, facts: Facts) -> None:
    told = facts(both)
    told["run"]["index"]["verified_by"] = "other"
    page = page_of(told)
    assert "exceeds 0.7 by px, which found that picture, and 0.5 by other, which verifies it" in page
    assert "Of 2 harmless prompts, 2 pictures of each, none lie above the line of either." in page
    assert "Verified above" in page
    assert "descriptor px, verified by other" in page
    assert "0.99 (cosine, px); 0.9 (other)" in page
    assert "would call a copy by itself" in page


def test_with_one_instrument_nothing_of_a_second_is_said(known: dict[str, Any]) -> None:
    assert known["bands"]["alone"] == []
    assert "verifies it" not in page_of(known)
    assert "Verified above" not in page_of(known)
