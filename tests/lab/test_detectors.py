"""The table of detectors: who is told from whom in each of its groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sharpaudit.lab.detectors import GROUPS, Truth, table

SCORES = {
    ("exact", "memorised"): 5.0,
    ("template", "memorised"): 5.0,
    ("exact", "partly"): 3.0,
    ("unseen", "neighbour"): 4.0,
    ("exact", "neighbour"): 4.0,
    ("exact", "harmless"): 9.0,
    ("seen", "harmless"): 1.0,
}
"""Planted prompts of which nothing is copied are nowhere: their score would show."""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """Three prompts of each kind and label, five harmless ones; half of them name a colour."""
    truth = []
    for kind, label in SCORES:
        for i in range(5 if (kind, label) == ("seen", "harmless") else 3):
            name = f"{kind} {label} {i}"
            truth.append(Truth(f"{name}, {'red background' if i % 2 else 'plain'}", "test", name, kind, label))
    values = np.array([[SCORES[row.kind, row.label] for row in truth]])
    return table(truth, {"residual_gap": values}, {})


def aucs(lines: list[dict[str, Any]], captions: str) -> dict[str, tuple[int, int, float]]:
    return {
        line["plants"]: (line["memorised"], line["harmless"], line["mean"])
        for line in lines
        if line["statistic"] == "auc" and line["captions"] == captions
    }


def test_each_group_has_its_positives_and_negatives(lines: list[dict[str, Any]]) -> None:
    found = aucs(lines, "all")
    assert list(found) == list(GROUPS)
    assert found == {
        "exact": (3, 5, 1.0),
        "template": (3, 5, 1.0),
        "partly": (3, 5, 1.0),
        "neighbour": (6, 5, 1.0),
        "others_memorised": (12, 5, 1.0),
        "others_harmless": (3, 14, 1.0),
    }


def test_others_are_told_for_all_captions_together_alone(lines: list[dict[str, Any]]) -> None:
    assert set(aucs(lines, "naming none")) == {"exact", "template"}


def test_without_others_there_is_nothing_to_take_for_anything() -> None:
    truth = [Truth(f"{label} {i}", "test", f"{label} {i}", kind, label) for kind, label in SCORES for i in range(3)]
    plain = [row for row in truth if row.label in ("memorised", "harmless")]
    found = table(plain, {"noise_gap": np.arange(len(plain), dtype=float)[None]}, {}, ("all",))
    assert {line["plants"] for line in found} == {"exact", "template"}
