"""Before and after: the strip, what it tells, and what is refused."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.operations.mitigate import before_and_after, harmless_prompts, target_of
from pipelines.operations.strips import GAP
from sharpaudit.config import LAB
from sharpaudit.errors import UserError
from sharpaudit.images import decode
from sharpaudit.mitigation.base import Case
from sharpaudit.plugs import MITIGATIONS
from sharpaudit.samples.generate import Generator
from sharpaudit.seeds import sample_latents
from tests.support.wrapped import Wrapped, analytic

PLANTED = "A watercolour of a small ladder on a hill"


def case(n: int = 3) -> Case:
    model = analytic((0.9,))
    x_T = sample_latents(0, [("planted 0", i) for i in range(n)], model.latent_shape)
    return Case(model, ["planted 0"] * n, x_T, list(range(n)), 5.0, 6)


def test_the_strip_shows_unmitigated_pictures_above_mitigated_ones() -> None:
    asked = case()
    strip, told = before_and_after(MITIGATIONS["delay"].method, asked, 2)
    assert strip.shape == (2 * 32 + GAP, 3 * 32 + 2 * GAP, 3)
    own = Generator(asked.denoiser, 0, 6, 5.0, 4).pictures(asked.prompts, asked.x_T)
    for i, picture in enumerate(own):
        assert (strip[:32, i * (32 + GAP) : i * (32 + GAP) + 32] == picture).all()
    assert (strip[32 : 32 + GAP] == 255).all()
    assert told == [{"picture": i, "evaluations": 12, "without": 12, "guided_from": 3} for i in range(3)]


@pytest.mark.parametrize("n", [3, 4])
def test_a_target_is_the_median_of_harmless_prompts_and_of_methods_that_have_one(n: int) -> None:
    asked, harmless = case(), ["a cat", "a dog", "a boat", "a hat"][:n]
    sail = MITIGATIONS["sail"]
    target = target_of(sail.method, asked, harmless, 2)
    each = [target_of(sail.method, asked, [prompt], 1) for prompt in harmless]
    assert target == pytest.approx(statistics.median(value for value in each if value is not None))
    assert target_of(MITIGATIONS["delay"].method, asked, harmless, 2) is None
    _, told = before_and_after(sail.aimed(target).method, asked, 3)
    assert all(line["reached"] == (line["after"] <= target) for line in told)


def test_a_harmless_prompt_without_a_value_is_named() -> None:
    asked = case()
    poisoned = replace(asked, denoiser=Wrapped(asked.denoiser, poisoned={"a dog"}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match='"a dog": no target can be taken from this harmless prompt: The model'):
        target_of(MITIGATIONS["sail"].method, poisoned, ["a cat", "a dog"], 1)


def test_prompts_are_the_lines_that_hold_one(tmp_path: Path) -> None:
    path = tmp_path / "harmless.txt"
    path.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert harmless_prompts(path) == ["a cat", "a dog"]
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no prompt; write one a line"):
        harmless_prompts(path)
    with pytest.raises(UserError, match="cannot read harmless prompts: No such file"):
        harmless_prompts(tmp_path / "none.txt")


def test_the_command_writes_a_strip_and_a_line_a_picture(tmp_path: Path) -> None:
    out, harmless = tmp_path / "strip.png", tmp_path / "harmless.txt"
    harmless.write_text("a cat\na dog\n", encoding="utf-8")
    call = ["mitigate", "--model", str(LAB / "analytic/model.json"), "--prompt", PLANTED, "--out", str(out)]
    done = CliRunner().invoke(cli, [*call, "--harmless", str(harmless), "--pictures", "2", "--steps", "4"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.output.splitlines()[:2]]
    assert [line["picture"] for line in lines] == [0, 1]
    assert {"before", "after", "reached", "evaluations", "without"} <= lines[0].keys()
    assert decode(out.read_bytes()).shape == (2 * 32 + GAP, 2 * 32 + GAP, 3)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--method", "sial"], 'no method of mitigation is called "sial"'),
        (["--method", "attention"], "this model lets nobody steer its attention"),
        (["--prompt", "  "], "--prompt is empty"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_no_file(tmp_path: Path, more: list[str], says: str) -> None:
    out = tmp_path / "strip.png"
    call = ["mitigate", "--model", str(LAB / "analytic/model.json"), "--prompt", PLANTED, "--out", str(out)]
    done = CliRunner().invoke(cli, [*call, *more])
    assert isinstance(done.exception, UserError)
    assert says in str(done.exception)
    assert not out.exists()
