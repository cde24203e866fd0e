"""The bench of ingest counts what it wrote, and finds the relatives that it made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.bench import ingest
from pipelines.bench.ingest import bench_lines, markdown, measure, write_prompts
from pipelines.bench.lines import unmet
from sharpaudit.errors import UserError


def test_the_file_holds_as_many_distinct_prompts_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BLOCK", 500)
    told = write_prompts(tmp_path / "a.txt", 1_900)
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert (len(lines), len(set(lines))) == (1_900, told)
    assert 0.85 < told / len(lines) < 0.95


@pytest.mark.chaos
def test_both_ingests_are_measured(tmp_path: Path) -> None:
    exact, near = measure(tmp_path, 2_000, 1_500)
    assert exact.n_families == exact.n_prompts < 2_000
    # Of the fifth that differs from another prompt in a letter, those of which the other is long enough.
    assert 0.7 < near.n_families / near.n_prompts < 0.95
    lines = {line.name: line for line in bench_lines(exact, near)}
    assert (lines["ingest.gib"].goal, lines["ingest.near_minutes"].goal) == (2.0, 10.0)
    assert 0 < exact.gib < 2
    assert lines["ingest.files"].goal == 2000
    # A file and a manifest of each shard, table commits and the record: 2,000 rows are 8 shards, 999 harmless 4 each.
    assert 2 * (8 + 8) < exact.n_files < 100
    assert lines["ingest.near_minutes"].met
    assert "| 2,000 |" in markdown(exact, near)


def test_families_that_were_not_found_or_made_up_miss_a_goal() -> None:
    made = ingest.Measured(1_000, 900, 900, 30, 6.0, 0.5)

    def missed(exact: int, near: int) -> list[str]:
        lines = bench_lines(replace(made, n_families=exact), replace(made, n_families=near))
        return [text.split()[0] for text in unmet(list(lines), [])]

    assert missed(900, 750) == []
    assert missed(900, 900) == ["ingest.near_families"]
    assert missed(900, 500) == ["ingest.near_families_least"]
    assert missed(890, 750) == ["ingest.families"]


@pytest.mark.chaos
def test_a_corpus_that_lost_a_prompt_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "write_prompts", lambda path, n: write_prompts(path, n) + 1)
    with pytest.raises(UserError, match=r"prompts in the corpus, \d+ distinct ones in the file"):
        measure(tmp_path, 200, 100)
