"""`sharpaudit spectrum`: what it prints agrees whichever way it was computed, and mistakes are one line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from sharpaudit.errors import UserError
from sharpaudit.lab.analytic import Sizes, write
from sharpaudit.spectra.hessian import BRANCHES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spectrum")
    write(folder, Sizes(strong=2, weak=0, audited_harmless=2, harmless=4, other_references=2))
    return folder / "model.json"


def asked(model, *options):
    prompt = json.loads(model.read_text())["planted"][0]["prompt"]
    return CliRunner().invoke(cli, ["spectrum", str(model), "--prompt", prompt, *options], standalone_mode=False)


def lines(model, *options):
    outcome = asked(model, "--json", *options)
    assert outcome.exit_code == 0, outcome.exception
    return {line["hessian"]: line for line in map(json.loads, outcome.output.splitlines())}


def test_both_ways_tell_the_same_spectrum(model):
    whole, few = lines(model, "--ends", "3"), lines(model, "--ends", "3", "--no-whole", "--probes", "16")
    assert list(whole) == list(few) == list(BRANCHES)
    for branch in BRANCHES:
        told, found = whole[branch], few[branch]
        assert (told["t"], len(told["eigenvalues"]), told["latent"]) == (found["t"], 192, 192)
        scale = max(map(abs, told["eigenvalues"]))
        for end in ("smallest", "largest"):
            assert found[end] == pytest.approx(told[end], abs=1e-3 * scale)
        (n, same, _), (_, low, high) = told["not_negative"], found["not_negative"]
        assert n == same
        assert branch == "difference" or low - 1 <= n <= high + 1


def test_people_get_words_and_a_later_step_another_place(model):
    said = asked(model, "--ends", "2").output
    assert [line.split(":")[0] for line in said.splitlines() if not line.startswith(" ")] == list(BRANCHES)
    assert "eigenvalues are not negative; asymmetry" in said
    assert lines(model, "--step", "40")["conditional"]["t"] < lines(model)["conditional"]["t"]


def test_a_step_that_a_sample_does_not_have_is_one_line(model):
    outcome = asked(model, "--step", "60")
    assert isinstance(outcome.exception, UserError)
    assert "step 60 of 50: give 1 to 50" in str(outcome.exception)
