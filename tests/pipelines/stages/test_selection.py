"""Selection: one row a picture, in groups that follow one another."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.stages.selection import SelectionWorker, expected_pictures, groups
from pipelines.stages.triage import generated
from sharpaudit.errors import Status
from tests.support.stage_tables import config

ROWS = pa.table(
    {
        "prompt_id": ["e", "d", "c", "b", "a"],
        "prompt": ["fifth", "fourth", "third", "second", "first"],
        "purpose": ["flagged", "band", "flagged", "someone else's", "control"],
        "n_samples": pa.array([2, 1, 1, 1, 3], pa.int32()),
    }
)


def test_groups_follow_one_another_and_prompts_within_them() -> None:
    made = SelectionWorker().process(ROWS)
    assert [(row["purpose"], row["prompt_id"], row["seed_index"]) for row in made.to_pylist()] == [
        ("flagged", "c", 0),
        ("flagged", "e", 0),
        ("flagged", "e", 1),
        ("control", "a", 0),
        ("control", "a", 1),
        ("control", "a", 2),
        ("band", "d", 0),
        ("someone else's", "b", 0),
    ]
    assert {(row["prompt_id"], row["prompt"]) for row in made.to_pylist()} == set(
        zip(ROWS["prompt_id"].to_pylist(), ROWS["prompt"].to_pylist(), strict=True)
    )
    assert set(made["status"].to_pylist()) == {Status.OK}


def test_the_order_of_the_rows_that_come_in_does_not_matter() -> None:
    assert SelectionWorker().process(ROWS.take([4, 2, 0, 1, 3])).equals(SelectionWorker().process(ROWS))


def test_nothing_selected_is_an_empty_table() -> None:
    assert SelectionWorker().process(ROWS.slice(0, 0)).num_rows == 0


def test_groups_are_those_of_the_table() -> None:
    assert groups(SelectionWorker().process(ROWS)) == {
        "flagged": [("c", 0), ("e", 0), ("e", 1)],
        "control": [("a", 0), ("a", 1), ("a", 2)],
        "band": [("d", 0)],
        "someone else's": [("b", 0)],
    }


@pytest.mark.parametrize(("audited", "controls"), [(1_000, 60), (10, 10)])
def test_the_plan_counts_each_purpose_once(audited: int, controls: int) -> None:
    asked = config("triage.alpha=0.02", "samples.per_prompt=3", "samples.band_prompts=7")
    counts = {"audit": audited, "calibration": 499, "fit": 50, "positive_control": 2}
    expected = {
        "flagged": -(-audited // 50),
        "positive_control": 2,
        "control": controls,
        "calibration_check": 10,
        "band": 7,
    }
    assert generated(asked, counts) == expected
    assert expected_pictures(asked, counts) == 3 * sum(expected.values())
