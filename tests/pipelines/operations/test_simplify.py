"""The simplest prompt of a finding, on a model that is known to need two of its words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.cli import cli
from pipelines.operations import simplify as operation
from pipelines.operations.simplify import Trial, captions, simplify, told
from pipelines.stages.inputs import index_of
from sharpaudit import open_run
from sharpaudit.errors import UserError
from sharpaudit.samples.generate import Generator
from tests.support.audits import load, tables


@pytest.fixture(scope="module")
def finding(clean: Path) -> dict[str, Any]:
    with open_run(clean) as run:
        return run.view("findings").to_pylist()[0]


@pytest.fixture
def needed(finding: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two words of the finding; whatever has both is drawn as the whole prompt is. The screen sees nothing low."""
    words = finding["prompt"].split()
    first, last = words[1], words[-1]
    drawn = Generator.pictures

    def pictures(self: Generator, prompts: Sequence[str], initial: Any) -> Any:
        return drawn(self, [finding["prompt"] if {first, last} <= set(p.split()) else p for p in prompts], initial)

    monkeypatch.setattr(Generator, "pictures", pictures)
    monkeypatch.setattr(Trial, "scores", lambda self, texts: [self.line] * len(texts))
    return first, last


def test_what_is_left_are_the_words_that_the_copy_needs(
    clean: Path, finding: dict[str, Any], needed: tuple[str, str]
) -> None:
    before = sorted((path, path.read_bytes()) for path in clean.rglob("*") if path.is_file())
    found = simplify(clean, finding["prompt_id"], None, 5, 100)
    assert found.text == " ".join(needed)
    assert (found.prompt, found.whole, found.left_out) == (finding["prompt"], True, 0)
    assert 0 < found.tried <= 30
    facts = told(found)
    one, other = facts["prompt"], facts["simplest"]
    assert (one["copies"], one["pictures"]) == (other["copies"], other["pictures"])
    assert one["pictures"] == 5
    assert one["copies"] >= finding["n_copies"] > 0
    assert 0 <= other["low"] < other["copies"] / 5 <= other["high"] <= 1
    own = {row["reference_id"] for row in tables(clean)["matches"] if row["prompt_id"] == finding["prompt_id"]}
    assert found.wanted & own
    assert sorted((path, path.read_bytes()) for path in clean.rglob("*") if path.is_file()) == before


def test_the_first_pictures_are_those_of_the_run(clean: Path, finding: dict[str, Any]) -> None:
    found = simplify(clean, finding["prompt_id"], None, 1, 1)
    judged = [row for row in tables(clean)["matches"] if row["prompt_id"] == finding["prompt_id"]]
    copies = {row["reference_id"] for row in judged if row["band"] == "copy"}
    assert found.wanted == copies
    assert found.before.counted(found.wanted) == finding["n_copies"]


def test_what_harmless_prompts_score_is_left_out_and_a_bound_ends_the_search(
    clean: Path, finding: dict[str, Any], needed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = simplify(clean, finding["prompt_id"], None, 2, 1)
    assert (found.tried, found.whole) == (1, False)
    below = np.nextafter
    monkeypatch.setattr(Trial, "scores", lambda self, texts: [float(below(self.line, -np.inf))] * len(texts))
    found = simplify(clean, finding["prompt_id"], None, 2, 100)
    assert (found.text, found.tried, found.whole) == (finding["prompt"], 0, True)
    assert found.left_out > 2
    # Nothing speaks against a text that has no score.
    monkeypatch.setattr(Trial, "scores", lambda self, texts: [float("nan")] * len(texts))
    assert simplify(clean, finding["prompt_id"], None, 2, 100).text == " ".join(needed)


def test_scores_and_their_line_are_those_of_the_run(config_path: Path, clean: Path, finding: dict[str, Any]) -> None:
    made = tables(clean)
    trial = Trial(operation.RunFolder.open(clean), load(config_path), finding["prompt_id"])
    own = [
        r["value"] for r in made["scores"] if r["prompt_id"] == finding["prompt_id"] and r["metric"] == "residual_gap"
    ]
    assert trial.scores([finding["prompt"]]) == pytest.approx(own, rel=1e-4)
    roles = {row["prompt_id"]: row["role"] for row in made["corpus"]}
    harmless = [
        r["value"] for r in made["scores"] if roles[r["prompt_id"]] == "calibration" and r["metric"] == "residual_gap"
    ]
    assert trial.line == pytest.approx(np.median(harmless))


def test_captions_are_found_by_whole_words(config_path: Path, clean: Path) -> None:
    index = index_of(load(config_path))
    held = [row for table in index.tables for row in table.read(["caption"])["caption"].to_pylist() if row]
    own = held[0]
    found = captions(index, own.upper() + "!")
    assert (found.total, found.same) == (len(held), sum(row == own for row in held))
    word = own.split()[1]
    found = captions(index, word)
    assert found.containing == sum(word in row.split() for row in held) > 0
    assert (found.same, found.examples[0] in held) == (0, True)
    assert captions(index, word[:-1]).containing == sum(word[:-1] in row.split() for row in held)


def test_the_command_tells_and_writes_what_was_found(
    clean: Path, finding: dict[str, Any], needed: tuple[str, str], tmp_path: Path
) -> None:
    out, facts = tmp_path / "strip.png", tmp_path / "facts.json"
    call = ["simplify", str(clean), finding["prompt_id"], "--count", "3", "--out", str(out), "--json", str(facts)]
    outcome = CliRunner().invoke(cli, call, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert f'"{" ".join(needed)}" (2 words): 3 of 3 pictures copy' in outcome.output
    assert "no single word can go" in outcome.output
    assert json.loads(facts.read_text())["simplest"]["text"] == " ".join(needed)
    strip = np.asarray(Image.open(out))
    assert strip.shape[1] > strip.shape[0]


def test_what_is_no_finding_is_one_line(clean: Path) -> None:
    with pytest.raises(UserError, match="the run holds no such prompt"):
        simplify(clean, "nobody", None, 2, 2)
    corpus = [row["prompt_id"] for row in tables(clean)["corpus"] if row["role"] == "fit"]
    with pytest.raises(UserError, match="none of its first 2 pictures is a copy"):
        simplify(clean, corpus[0], None, 2, 2)
