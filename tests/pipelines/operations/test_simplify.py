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
from pipelines.operations.simplify import simplify, told
from pipelines.operations.trial import Trial
from sharpaudit import open_run
from sharpaudit.errors import Status, UserError
from sharpaudit.samples.generate import Generator
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import BANDS
from tests.support.audits import tables


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
    assert (found.prompt, found.whole, found.put_off) == (finding["prompt"], True, 0)
    assert 0 < found.tried <= 30
    facts = told(found)
    one, other = facts["prompt"], facts["simplest"]
    assert (one["copies"], one["pictures"]) == (other["copies"], other["pictures"])
    assert (one["pictures"], one["text"] != other["text"]) == (5, True)
    assert 0 <= other["low"] <= other["copies"] / 5 <= other["high"] <= 1
    assert sorted((path, path.read_bytes()) for path in clean.rglob("*") if path.is_file()) == before


def test_rates_are_of_noise_that_decided_nothing(
    clean: Path, finding: dict[str, Any], needed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    drawn = Trial.draw
    monkeypatch.setattr(
        Trial,
        "draw",
        lambda self, text, numbers: asked.extend((text, i) for i in numbers) or drawn(self, text, numbers),
    )
    found = simplify(clean, finding["prompt_id"], 3, 2, 100)
    assert asked[-4:] == [(found.prompt, 3), (found.prompt, 4), (found.text, 3), (found.text, 4)]
    assert {i for _, i in asked[:-4]} == {0, 1, 2}


def test_the_first_pictures_are_those_of_the_run(clean: Path, finding: dict[str, Any]) -> None:
    trial, n = Trial(clean, finding["prompt_id"]), load_pictures(clean)
    judged = [row for row in tables(clean)["matches"] if row["prompt_id"] == finding["prompt_id"]]
    drawn = trial.draw(trial.prompt, range(n))
    assert {row["reference_id"] for row in judged if row["band"] == "copy"} <= drawn.shown
    assert drawn.counted(drawn.shown) == finding["n_copies"]


def load_pictures(root: Path) -> int:
    """Pictures that the run makes of a prompt."""
    return int(RunFolder.open(root).config().samples.per_prompt)


def test_what_harmless_prompts_score_is_put_off_but_no_word_stays_for_it(
    clean: Path, finding: dict[str, Any], needed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "scores", lambda self, texts: [float(np.nextafter(self.line, -np.inf))] * len(texts))
    found = simplify(clean, finding["prompt_id"], None, 2, 100)
    assert (found.text, found.whole) == (" ".join(needed), True)
    assert found.put_off > 0
    drawn_without_screen = found.tried
    # A text without a score is drawn at once.
    monkeypatch.setattr(Trial, "scores", lambda self, texts: [float("inf")] * len(texts))
    found = simplify(clean, finding["prompt_id"], None, 2, 100)
    assert (found.text, found.put_off) == (" ".join(needed), 0)
    assert found.tried != drawn_without_screen


def test_a_bound_ends_the_search_and_is_told(clean: Path, finding: dict[str, Any], needed: tuple[str, str]) -> None:
    found = simplify(clean, finding["prompt_id"], None, 2, 1)
    assert (found.tried, found.whole) == (1, False)


def test_of_candidates_the_one_with_the_highest_score_is_drawn_first(
    clean: Path, finding: dict[str, Any], needed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    drawn = Trial.draw
    monkeypatch.setattr(Trial, "draw", lambda self, text, numbers: asked.append(text) or drawn(self, text, numbers))
    monkeypatch.setattr(Trial, "scores", lambda self, texts: [self.line + len(text) for text in texts])
    simplify(clean, finding["prompt_id"], None, 1, 100)
    words = finding["prompt"].split()
    halves = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
    assert asked[1:3] == sorted(halves, key=len, reverse=True)


def test_scores_and_their_line_are_those_of_the_run(clean: Path, finding: dict[str, Any]) -> None:
    made = tables(clean)
    trial = Trial(clean, finding["prompt_id"])
    scores = [row for row in made["scores"] if row["metric"] == "residual_gap"]
    own = [row["value"] for row in scores if row["prompt_id"] == finding["prompt_id"]]
    assert trial.scores([finding["prompt"]]) == pytest.approx(own, rel=1e-4)
    roles = {row["prompt_id"]: row["role"] for row in made["corpus"]}
    assert trial.line == pytest.approx(
        np.median([r["value"] for r in scores if roles[r["prompt_id"]] == "calibration"])
    )


def test_a_picture_that_does_not_fit_the_memory_says_nothing_of_a_text(
    clean: Path, finding: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Generator.pictures

    def starved(self: Generator, prompts: Sequence[str], initial: Any) -> Any:
        whole = prompts[0] == finding["prompt"]
        return made(self, prompts, initial) if whole else [Status.OUT_OF_MEMORY] * len(prompts)

    monkeypatch.setattr(Generator, "pictures", starved)
    monkeypatch.setattr(Trial, "scores", lambda self, texts: [self.line] * len(texts))
    with pytest.raises(UserError, match="Give a device with more memory"):
        simplify(clean, finding["prompt_id"], None, 2, 100)


def test_the_command_tells_and_writes_what_was_found(
    clean: Path, finding: dict[str, Any], needed: tuple[str, str], tmp_path: Path
) -> None:
    out, facts = tmp_path / "strip.png", tmp_path / "facts.json"
    call = ["simplify", str(clean), finding["prompt_id"], "--count", "3", "--out", str(out), "--json", str(facts)]
    outcome = CliRunner().invoke(cli, call, catch_exceptions=False)
    assert outcome.exit_code == 0
    assert f'"{" ".join(needed)}" (2 words): 3 of 3 further pictures copy' in outcome.output
    assert "without any single word none of 2 pictures copies" in outcome.output
    assert json.loads(facts.read_text())["simplest"]["text"] == " ".join(needed)
    strip = np.asarray(Image.open(out))
    assert strip.shape[1] > strip.shape[0]


def test_what_is_no_finding_is_one_line(clean: Path) -> None:
    with pytest.raises(UserError, match="the run holds no such prompt"):
        simplify(clean, "nobody", None, 2, 2)
    corpus = [row["prompt_id"] for row in tables(clean)["corpus"] if row["role"] == "fit"]
    with pytest.raises(UserError, match="none of its first 2 pictures is a copy"):
        simplify(clean, corpus[0], None, 2, 2)


def test_a_run_that_is_not_done_so_far_is_one_line(copy: Path, finding: dict[str, Any]) -> None:
    (RunFolder.open(copy).table(BANDS).folder / "table.json").unlink()
    with pytest.raises(UserError, match="has no line of a copy yet; let the run finish first"):
        simplify(copy, finding["prompt_id"], None, 2, 2)
