"""Grades: the strongest thing that speaks for a prompt, counted, and shown with where a copy is."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharpaudit.images import decode, encode_png
from sharpaudit.matches.decide import false_match_rate
from sharpaudit.report.html import GRADE_WORDS, findings_csv, render
from sharpaudit.report.marked import EDGE, marked
from sharpaudit.report.sections.grades import GRADES
from sharpaudit.tables.views import LEAST_AGREEMENT, WHOLE_AGREEMENT
from tests.report.conftest import opened
from tests.support.handmade import OK, SELECTED, Rows, told

Facts = Callable[..., dict[str, Any]]
ALIKE = {"a1": 0.6, "a2": 0.4, "a5": 0.3, "f0": 0.2, "f1": 0.4}
AGREEMENT = {"a0": 0.9, "a5": 0.3, "f0": 0.3, "f1": 0.1}
CELLS = [1, 2, 0, 0]


@pytest.fixture
def corroborated(rows: Rows) -> Rows:
    """The lines are .4 and .3. a0 is a localised copy, a5 a copy on the line; a1's pictures are alike, a2's on it."""
    for name in SELECTED:
        row = {"prompt_id": name, "n_pictures": 2, "alike": ALIKE.get(name, 0.0), "background": 0.25} | OK
        if name in AGREEMENT:
            row |= {"sample_id": f"s-{name}-1", "reference_id": f"r-{name}-1", "agreement": AGREEMENT[name]}
            row |= {
                "same_share": 0.25,
                "plain_share": 0.5,
                "mirrored": name == "a0",
                "scale": 1.3,
                "cells": CELLS,
                "cells_wide": 2,
            }
        rows["corroboration"].append(row)
    return rows


def test_a_prompt_has_the_strongest_grade_that_it_earns(corroborated: Rows, facts: Facts) -> None:
    found = facts(corroborated)
    grades = {row["prompt_id"]: row["grade"] for row in found["findings"]["rows"]}
    assert grades == {"a0": "localised", "a5": "one instrument"}
    none = dict.fromkeys(GRADES, 0)
    assert found["grades"]["counts"] == {
        "flagged": none | {"localised": 1, "alike across seeds": 1},
        "uncalibrated": none,
        "controls": none | {"one instrument": 1, "none": 3},
    }
    (alike,) = found["grades"]["alike"]
    assert (alike["prompt"], alike["alike"], alike["best_similarity"]) == ("prompt a1", 0.6, 0.5)
    assert (found["grades"]["alike_above"], found["grades"]["agreement_above"]) == (0.4, 0.3)
    assert found["grades"]["alike_by_chance"] == found["grades"]["located_by_chance"] == false_match_rate(2)


def test_a_copy_is_of_the_whole_or_of_a_part(corroborated: Rows, facts: Facts) -> None:
    extents = {row["prompt_id"]: row["extent"] for row in facts(corroborated)["findings"]["rows"]}
    assert extents == {"a0": "whole", "a5": "part"}
    for row in corroborated["corroboration"]:
        if row["prompt_id"] == "a0":
            row["agreement"] = WHOLE_AGREEMENT - 0.01
    assert facts(corroborated)["findings"]["rows"][0]["extent"] == "part"


def test_harmless_prompts_that_may_lie_above_a_line_do(corroborated: Rows, facts: Facts) -> None:
    """As many as are granted above the line of a copy: a memorised one among them hides nothing."""
    corroborated["bands"][0]["n_exceptions"] = 1
    found = facts(corroborated)["grades"]
    # And a quarter at the least.
    assert (found["alike_above"], found["agreement_above"]) == (0.2, LEAST_AGREEMENT)
    assert found["counts"]["controls"]["localised"] == 1
    assert found["located_by_chance"] == false_match_rate(2, 1)


def test_prompts_that_lost_a_picture_are_no_line_and_have_no_grade_of_many(corroborated: Rows, facts: Facts) -> None:
    for row in corroborated["corroboration"]:
        if row["prompt_id"] in ("f1", "a1"):
            row["n_pictures"] = 1
    found = facts(corroborated)["grades"]
    assert (found["alike_above"], found["n_alike"], found["n_located"]) == (0.2, 1, 1)
    assert found["counts"]["flagged"] == dict.fromkeys(GRADES, 0) | {"localised": 1, "score only": 1}
    assert found["counts"]["controls"]["alike across seeds"] == 1


def test_what_is_selected_no_longer_corroborates_nothing(corroborated: Rows, facts: Facts, tmp_path: Path) -> None:
    for row in corroborated["triage"]:
        if row["prompt_id"] in ("a1", "f1"):
            row.update(selected_for="none", n_samples=0)
    found = facts(corroborated)["grades"]
    assert (found["alike"], found["alike_above"]) == ([{**found["alike"][0]}], 0.2)
    assert found["alike"][0]["prompt"] == "prompt a2"
    with opened(corroborated, tmp_path) as connection:
        left = connection.sql("SELECT prompt_id FROM corroboration").fetchall()
    assert {name for (name,) in left} == SELECTED.keys() - {"a1", "f1"}


def test_without_lines_nothing_passes_one(corroborated: Rows, facts: Facts) -> None:
    """Of an index without pictures, and of prompts with a picture each."""
    for row in corroborated["corroboration"]:
        row.update(agreement=None, alike=None, cells=None)
    found = facts(corroborated)
    assert (found["grades"]["alike_above"], found["grades"]["agreement_above"]) == (None, None)
    assert {row["grade"] for row in found["findings"]["rows"]} == {"one instrument"}
    assert "strongest evidence" not in render(found, lambda _: b"")


def test_a_finding_tells_how_far_above_the_background_it_lies(corroborated: Rows, facts: Facts) -> None:
    found = facts(corroborated)
    assert found["findings"]["rows"][0]["normalised_similarity"] == pytest.approx(0.99 - 0.25)
    first = next(csv.DictReader(io.StringIO(findings_csv(found))))
    assert float(first["normalised_similarity"]) == pytest.approx(0.74)
    assert (first["grade"], first["agreement"], first["copied_share"]) == ("localised", "0.9", "0.25")


def test_the_page_says_it_and_shows_where(corroborated: Rows, facts: Facts, tmp_path: Path) -> None:
    run = told()
    run["settings"]["report"]["show_images"] = True
    found = facts(corroborated, run)
    page = html.unescape(render(found, lambda name: (tmp_path / name).read_bytes()))
    assert f"<tr><td>{GRADE_WORDS['localised']}</td>" in page
    assert "a copy, localised, of the whole: 90.0% of what is to be seen is the same, 25.0% of the picture" in page
    assert "plain ground and outlines agree on 50.0%; mirrored; scaled by 1.3, were their shorter sides equal" in page
    assert "0.74 above what the picture has to pictures of harmless prompts" in page
    assert "more than 30.0% is the same at the same place" in page
    assert "more than of all of 2 harmless prompts and the training pictures next to them" in page
    assert "<td>prompt a1</td>" in page
    (shown, _) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="where the two agree">', page)
    best = found["findings"]["rows"][0]
    original = decode((tmp_path / best["best_image_path"]).read_bytes())
    assert (decode(base64.b64decode(shown)) == marked(original, "1200", 2)).all()


def test_what_agrees_is_left_as_it_is_and_the_rest_faded() -> None:
    picture = np.random.default_rng(0).integers(0, 200, (12, 12, 3)).astype(np.uint8)
    made = marked(picture, "1201000100000001", 4)
    assert (made[:2, :5] == picture[:2, :5]).all()
    assert (made[8:, :8] >= picture[8:, :8]).all()
    assert (made[3, :5] == EDGE).all()
    assert decode(encode_png(made)).shape == picture.shape
    assert (marked(picture, "1111", 2) == picture).all()
