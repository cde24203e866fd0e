"""What the report says of copies, flagged prompts and controls apart, against tables whose every count is known."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import pytest

from sharpaudit.matches.decide import false_match_bound, false_match_rate
from sharpaudit.report.html import render
from sharpaudit.statistics.intervals import upper_bound
from sharpaudit.statistics.missed import seen
from tests.support.handmade import Rows

Facts = Callable[..., dict[str, Any]]


def no_pictures(path: str) -> bytes:
    raise AssertionError(f"{path}: pictures are hidden")


def page_of(facts: dict[str, Any]) -> str:
    return html.unescape(render(facts, no_pictures))


def of(rows: Rows, table: str, **where: Any) -> dict[str, Any]:
    return next(row for row in rows[table] if all(row.get(k) == v for k, v in where.items()))


def with_band(rows: Rows, reached: list[float]) -> None:
    """A hundred band prompts; the first reach so much, the others .5; one may lie above the line."""
    for i in range(100):
        name = f"f{i}"
        if i > 1:
            for table in ("corpus", "triage"):
                rows[table].append(of(rows, table, prompt_id="f1") | {"prompt_id": name})
            for seed in (0, 1):
                sample = {"sample_id": f"s-{name}-{seed}", "prompt_id": name}
                for table in ("samples", "matches"):
                    rows[table].append(of(rows, table, sample_id=f"s-f1-{seed}") | sample)
        best = reached[i] if i < len(reached) else 0.5
        of(rows, "matches", sample_id=f"s-{name}-1").update(similarity=best, band="copy" if i == 0 else "none")
    rows["bands"][0].update(n_prompts=100, n_exceptions=1, copy_above=sorted(reached)[-2])


def test_what_flags_find_and_what_controls_add_stand_apart(known: dict[str, Any]) -> None:
    found = known
    assert found["copies"]["per_prompt"] == 2
    rate, high = false_match_rate(2), false_match_bound(2)
    for name, (compared, copied) in {"flagged": (2, 1), "controls": (4, 1)}.items():
        expected = {"expected": pytest.approx(compared * rate), "expected_high": pytest.approx(compared * high)}
        assert found["copies"][name] == {"compared": compared, "copied": copied} | expected
    steps = {step["step"]: (step["n"], step["of"]) for step in found["flow"] if "of" in step}
    assert (steps["flagged with a copy"], steps["controls with a copy"]) == ((1, 2), (1, 4))
    page = page_of(found)
    assert "1 of the 2 flagged prompts and 1 of the 4 controls" in page
    assert "at least one picture, of 2 each," in page
    assert "0.7 and 1.3 would be expected by chance" in page
    assert "No picture was compared of the other 4 of 10 audited prompts" in page


def test_prompts_without_a_compared_picture_are_in_no_denominator(rows: Rows, facts: Facts) -> None:
    for row in [row for row in rows["matches"] if row["prompt_id"] == "a1"]:
        row.update(similarity=None, band=None, status="no_descriptor", reason="x")
    assert facts(rows)["copies"]["flagged"]["compared"] == 1


def test_without_bands_nothing_is_expected(rows: Rows, facts: Facts) -> None:
    rows["bands"] = []
    found = facts(rows)
    assert found["bands"] is None
    assert found["copies"]["flagged"]["expected"] is None
    assert "expected by chance" not in page_of(found)


def test_the_line_and_the_findings_are_shown_at_no_one_and_two_exceptions(rows: Rows, facts: Facts) -> None:
    """a0 (flagged) reached .99 and a5 (a control) .9."""
    with_band(rows, [0.95, 0.85, 0.7])
    told = facts(rows)
    found = told["bands"]
    lines = [(row["exceptions"], row["copy_above"], row["flagged"], row["controls"]) for row in found["lines"]]
    assert lines == [(0, 0.95, 1, 0), (1, 0.85, 1, 1), (2, 0.7, 1, 1)]
    assert [row["in_force"] for row in found["lines"]] == [False, True, False]
    assert found["false_match_rate"] == pytest.approx(2 / 101)
    page = page_of(told)
    assert "1 (in force)" in page
    assert "Of harmless prompts with 2 pictures 1.98% would exceed it by chance" in page


def test_no_more_exceptions_are_shown_than_are_granted(known: dict[str, Any]) -> None:
    assert [row["exceptions"] for row in known["bands"]["lines"]] == [0]


def test_a_band_prompt_without_all_its_pictures_bounds_nothing(rows: Rows, facts: Facts) -> None:
    """It may have lost the picture that would have raised the line."""
    of(rows, "matches", sample_id="s-f1-0").update(status="no_descriptor", similarity=None, band=None, reason="x")
    found = facts(rows)
    assert found["bands"]["false_match_high"] == false_match_bound(1)
    assert found["copies"]["controls"]["expected"] == pytest.approx(4 * false_match_rate(1))


def test_a_flagged_prompt_without_all_its_pictures_may_copy(rows: Rows, facts: Facts, known: dict[str, Any]) -> None:
    whole = known["controls"]
    for table in ("samples", "matches"):
        rows[table].remove(of(rows, table, sample_id="s-a1-0"))
    found = facts(rows)["controls"]
    assert found["missed_high"] == whole["missed_high"] == pytest.approx(7 * upper_bound(1, 4, 0.95))
    assert found["memorised"]["high"] == whole["memorised"]["high"] + 1
    assert found["recall_low"] == pytest.approx(1 / (2 + whole["missed_high"]))


def test_how_often_so_many_pictures_show_a_copy_is_said(known: dict[str, Any]) -> None:
    assert seen(0.3, 1) == pytest.approx(0.3)
    assert seen(0.3, 4) == pytest.approx(0.7599)
    assert [seen(0.0, 4), seen(1.0, 4)] == [0.0, 1.0]
    assert known["controls"]["seen"] == [{"rate": r, "share": seen(r, 2)} for r in (0.1, 0.3, 0.6)]
    page = page_of(known)
    assert "one that copies in 1, 3, 6 of 10 pictures is one with a probability of 19.0%, 51.0%, 84.0%" in page
    assert "would copy in at least one of 2 pictures" in page
