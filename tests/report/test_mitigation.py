"""What became of each finding by each method: told from pictures made by hand."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.mitigation.base import MOST_STRENGTHS
from sharpaudit.report.facts import collect
from sharpaudit.report.html import render
from sharpaudit.report.sections.mitigation import MITIGATION_SECTION
from sharpaudit.statistics.intervals import clopper_pearson, upper_bound
from sharpaudit.tables.query import materialise, open_file
from sharpaudit.tables.schemas import MITIGATION, RUN_TABLES
from tests.support.handmade import OK, Rows, told

N = 8


def arm(
    prompt: str,
    method: str,
    copies: int,
    strength: int = 1,
    pictures: int = N,
    lost: int = 0,
    reached: bool | None = None,
) -> list[dict[str, Any]]:
    """Pictures of which the first copy and the last were lost."""
    key = {"prompt_id": prompt, "method": method, "strength": strength, "setting": f"share = {strength}"}
    made = [
        key
        | {"seed_index": i, "band": "copy" if i < copies else "none", "similarity": 0.9 if i < copies else 0.25}
        | OK
        for i in range(pictures)
    ]
    for row in made:
        row |= {
            "evaluations": 20 if method == "none" else 30,
            "like_before": 0.5,
            "like_others": 0.75,
            "reached": reached,
        }
    for row in made[pictures - lost :]:
        row |= {"status": "non_finite", "reason": "NaN", "band": None, "similarity": None}
    return made


def collected(rows: Rows, root: Path, run: dict[str, Any] | None = None) -> dict[str, Any]:
    files = {}
    tables = (*RUN_TABLES, MITIGATION)
    for table in tables:
        path = root / f"{table.name.replace('/', '_')}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[table.name], table.schema), path)
        files[table.name] = [path]
    materialise(files, root / "audit.duckdb", tables=tables)
    with open_file(root / "audit.duckdb") as connection:
        run = run or told()
        run["settings"].setdefault("mitigation", {"alignment": None})
        return collect(connection, run, [MITIGATION_SECTION], tables)


def outcomes(rows: Rows, root: Path) -> dict[str, tuple[str, int, int]]:
    """Of a0 by method: outcome, strength and copies that are told."""
    (finding, *_) = collected(rows, root)["sections"]["mitigate"]["findings"]
    return {row["method"]: (row["outcome"], row["strength"], row["n_copies"]) for row in finding["methods"]}


def test_the_weakest_strength_that_suppresses_is_told_else_the_one_with_the_fewest_copies(
    rows: Rows, tmp_path: Path
) -> None:
    rows["mitigation"] = [
        *arm("a0", "none", 6, 0),
        *[*arm("a0", "sup", 2, 1, pictures=4), *arm("a0", "sup", 0, 2), *arm("a0", "sup", 0, 3)],
        *[*arm("a0", "weak", 1, 1, pictures=4), *arm("a0", "weak", 3, 2)],
        *[*arm("a0", "fail", 4, 1), *arm("a0", "fail", 4, 2)],
        *arm("a0", "bound", 1, reached=False),
        # The strongest came to its target, and still everything copies.
        *[*arm("a0", "vain", 4, reached=False), *arm("a0", "vain", 4, 2, pictures=4, reached=True)],
        *arm("a0", "aimed", 0, reached=False),
        *arm("a0", "lost", 0, lost=1),
        *arm("a0", "never", 0, pictures=1, lost=1),
    ]
    assert outcomes(rows, tmp_path) == {
        "sup": ("suppressed", 2, 0),
        "weak": ("weakened", 2, 3),
        "fail": ("failed", 1, 4),
        "bound": ("not reached", 1, 1),
        "vain": ("failed", 1, 4),
        "aimed": ("suppressed", 1, 0),
        "lost": ("incomplete", 1, 0),
        "never": ("not possible", 1, 0),
    }


def test_counts_stand_beside_the_control_and_with_their_interval(rows: Rows, tmp_path: Path) -> None:
    rows["mitigation"] = [
        row
        for prompt, after in (("a0", 0), ("a5", 5))
        for row in (*arm(prompt, "none", 6, 0), *arm(prompt, "delay", after))
    ]
    own = collected(rows, tmp_path)["sections"]["mitigate"]
    (method,) = own["methods"]
    assert (method["n"], method["suppressed"], method["failed"]) == (2, 1, 1)
    interval = clopper_pearson(1, 2)
    assert (method["share"]["low"], method["share"]["high"]) == (interval.low, interval.high)
    assert (method["evaluations"], method["without"], method["like_before"]) == (30, 20, 0.5)
    assert own["bound"] == upper_bound(0, N, 1 - 0.05 / 4)
    assert [finding["prompt"] for finding in own["findings"]] == ["prompt a0", "prompt a5"]


def test_what_tells_nothing_of_a_method_counts_in_no_share(rows: Rows, tmp_path: Path) -> None:
    """Without a method none of these pictures copies; one was lost; nothing could be changed."""
    rows["mitigation"] = [*arm("a0", "none", 0, 0), *arm("a0", "delay", 0), *arm("a5", "none", 6, 0)]
    rows["mitigation"] += [*arm("a5", "delay", 0, lost=1), *arm("a5", "never", 0, pictures=1, lost=1)]
    delay, never = collected(rows, tmp_path)["sections"]["mitigate"]["methods"]
    assert (delay["no copy before"], delay["incomplete"], never["not possible"]) == (1, 1, 1)
    assert delay["share"] == never["share"] == {"n": 0, "of": 0, "rate": None, "low": None, "high": None}


def test_a_bound_allows_for_the_choice_among_strengths() -> None:
    """Pictures that copy at the bound's rate by every strength show none of eight copies in 5% of findings at most."""
    bound, draw = upper_bound(0, N, 1 - 0.05 / MOST_STRENGTHS), np.random.default_rng(0)
    lucky = (draw.random((20_000, MOST_STRENGTHS, N)) >= bound).all(axis=2).any(axis=1).mean()
    assert lucky < 0.054
    single = (draw.random((20_000, MOST_STRENGTHS, N)) >= upper_bound(0, N, 0.95)).all(axis=2).any(axis=1).mean()
    assert single > 0.15


def test_a_finding_that_is_selected_no_longer_is_not_told_of(rows: Rows, tmp_path: Path) -> None:
    rows["mitigation"] = [*arm("a0", "none", 6, 0), *arm("a6", "none", 6, 0)]
    own = collected(rows, tmp_path)["sections"]["mitigate"]
    assert [finding["prompt_id"] for finding in own["findings"]] == ["a0"]


def test_the_page_shows_the_same_noise_before_and_after(rows: Rows, tmp_path: Path) -> None:
    pictures = [row["image_path"] for row in rows["samples"]]
    rows["mitigation"] = [*arm("a0", "none", 6, 0), *arm("a0", "delay", 0), *arm("a0", "never", 0, pictures=1, lost=1)]
    for i, row in enumerate(rows["mitigation"]):
        row |= {"image_path": pictures[i] if row["status"] == "ok" else None, "thumbnail_path": pictures[0]}
    run = told(show_images=True)
    run["settings"]["mitigation"] = {"alignment": "clip"}
    facts = collected(rows, tmp_path, run)
    (finding,) = facts["sections"]["mitigate"]["findings"]
    assert (finding["seed_index"], finding["image_path"]) == (0, pictures[0])
    assert {row["method"]: row["image_path"] for row in finding["methods"]} == {"delay": pictures[N], "never": None}
    page = html.unescape(render(facts, lambda name: (tmp_path / name).read_bytes(), [MITIGATION_SECTION]))
    assert "delay (share = 1): suppressed, 0 of 8 copy, 6 without" in page
    assert "leaves a rate of up to 42.2% possible" in page
    assert "never: not possible for 1" in page
    assert ">no picture<" not in page.split("What suppresses the findings")[1].split("<h2>")[0]


def test_a_page_that_tried_nothing_says_why(rows: Rows, tmp_path: Path) -> None:
    """The deadline came first, or there was no finding."""
    rows["mitigation"] = []
    page = render(collected(rows, tmp_path), lambda _: b"", [MITIGATION_SECTION])
    assert "Nothing was tried: the 2 findings were left" in page
    rows["mitigation"] = arm("a0", "none", 6, 0)
    page = render(collected(rows, tmp_path), lambda _: b"", [MITIGATION_SECTION])
    assert "1 of 2 findings were not tried" in page
    rows["mitigation"] = []
    for row in rows["matches"]:
        row["band"] = "none"
    page = render(collected(rows, tmp_path), lambda _: b"", [MITIGATION_SECTION])
    assert "There was no finding to try anything on." in page
