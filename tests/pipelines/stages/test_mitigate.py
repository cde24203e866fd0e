"""The stage mitigate, joined to a run that is whole: what it draws, from which noise, and what it says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.flow.identity import identities, inputs_of
from pipelines.operations.replay import replay_prompt
from pipelines.operations.validate import validate
from pipelines.operations.verify import faults
from pipelines.stages.mitigate import STAGE
from pipelines.stages.search import stored_pictures
from sharpaudit import open_run
from sharpaudit.embedders.base import open_embedder
from sharpaudit.errors import Status, UserError
from sharpaudit.mitigation.base import Case, mitigate
from sharpaudit.mitigation.targets import middle, values_of
from sharpaudit.plugs import EMBEDDERS, MITIGATIONS, SOLVERS
from sharpaudit.seeds import sample_latents
from sharpaudit.tables.runs import RunFolder, changes
from tests.support.audits import audit, load, tables

METHODS = ["delay", "attention", "numbers"]
ASKED = (f"mitigation.methods={json.dumps(METHODS)}", "mitigation.pictures=5")


@pytest.fixture(scope="module")
def joined(config_path: Path, clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, which the stage has joined."""
    root = tmp_path_factory.mktemp("mitigated") / "run"
    shutil.copytree(clean, root)
    audit(config_path, root, *ASKED)
    return root


@pytest.fixture(scope="module")
def rows(joined: Path) -> list[dict[str, Any]]:
    return tables(joined)["mitigation"]


def test_every_finding_is_tried_and_nothing_else_of_the_run_moves(
    clean: Path, joined: Path, rows: list[dict[str, Any]]
) -> None:
    with open_run(joined) as run:
        findings = set(run.view("findings")["prompt_id"].to_pylist())
        told = run.view("mitigated").to_pylist()
    assert {row["prompt_id"] for row in rows} == findings != set()
    assert {(row["prompt_id"], row["method"]) for row in told} == {(p, m) for p in findings for m in METHODS}
    before, after = tables(clean), tables(joined)
    assert {name: after[name] for name in before} == before
    assert faults(joined) == []


def test_without_a_method_the_pictures_are_those_of_the_finding(joined: Path, rows: list[dict[str, Any]]) -> None:
    own = {(row["prompt_id"], row["seed_index"]): row for row in rows if row["method"] == "none"}
    made = tables(joined)
    seen = {row["sample_id"]: row for row in made["matches"] if row["rank"] == 1}
    samples = [row for row in made["samples"] if (row["prompt_id"], row["seed_index"]) in own]
    assert len(samples) == 2 * len({prompt for prompt, _ in own})
    for sample in samples:
        row, match = own[sample["prompt_id"], sample["seed_index"]], seen[sample["sample_id"]]
        assert row["image_sha256"] == sample["image_sha256"]
        assert (row["reference_id"], row["band"]) == (match["reference_id"], match["band"])
        assert row["similarity"] == pytest.approx(match["similarity"], abs=1e-6)
        assert (row["evaluations"], row["strength"], row["like_before"]) == (sample["evaluations"], 0, None)


def test_a_method_draws_from_the_same_noise(config_path: Path, joined: Path, rows: list[dict[str, Any]]) -> None:
    config, run = load(config_path, *ASKED), RunFolder.open(joined)
    one = next(row for row in rows if row["method"] == "delay" and row["seed_index"] == 2)
    (prompt,) = {row["prompt"] for row in tables(joined)["corpus"] if row["prompt_id"] == one["prompt_id"]}
    denoiser = STAGE.open(run, config)._denoiser  # type: ignore[attr-defined]
    x_T = sample_latents(config.seed, [(one["prompt_id"], 2)], denoiser.latent_shape)
    asked = config.samples
    case = Case(denoiser, [prompt], x_T, [2], asked.guidance, asked.steps, SOLVERS[asked.solver], config.seed)
    (drawn,) = mitigate(MITIGATIONS["delay"].rungs()[one["strength"] - 1][1], case, 1)
    assert not isinstance(drawn, Status)
    (stored,) = stored_pictures(joined, [one["image_path"]])
    assert stored is not None
    assert np.abs(drawn.picture.astype(int) - stored.astype(int)).max() <= 1


def test_a_picture_is_held_against_that_of_its_noise_and_against_the_others(
    joined: Path, rows: list[dict[str, Any]]
) -> None:
    describer = open_embedder(EMBEDDERS["pixels-16"])
    one = next(row for row in rows if row["method"] == "numbers" and row["seed_index"] == 3)
    own = [row for row in rows if all(row[k] == one[k] for k in ("prompt_id", "method", "strength"))]
    control = [row for row in rows if (row["prompt_id"], row["method"]) == (one["prompt_id"], "none")]
    before = next(row for row in control if row["seed_index"] == 3)
    others = [row for row in own if row is not one]
    paths = [row["image_path"] for row in (one, before, *others)]
    vectors = describer.describe([picture for picture in stored_pictures(joined, paths) if picture is not None])
    assert one["like_before"] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)
    assert one["like_others"] == pytest.approx(float(np.median(vectors[2:] @ vectors[0])), abs=1e-5)


def test_what_the_model_has_nothing_for_is_said_and_costs_nothing(joined: Path, rows: list[dict[str, Any]]) -> None:
    refused = [row for row in rows if row["method"] == "attention"]
    assert {(row["status"], row["seed_index"], row["image_path"]) for row in refused} == {("not_steerable", 0, None)}
    with open_run(joined) as run:
        told = {row["outcome"] for row in run.view("mitigated").to_pylist() if row["method"] == "attention"}
    assert told == {"not possible"}


def test_strengths_rise_until_nothing_copies(joined: Path, rows: list[dict[str, Any]]) -> None:
    with open_run(joined) as run:
        told = [row for row in run.view("mitigated").to_pylist() if row["method"] != "attention"]
    for row in told:
        own = [r for r in rows if (r["prompt_id"], r["method"]) == (row["prompt_id"], row["method"])]
        at = [r for r in own if r["strength"] == row["strength"]]
        assert len(at) == row["n_asked"] == 5
        assert sum(r["band"] == "copy" for r in at) == row["n_copies"]
        assert (row["outcome"] == "suppressed") == (row["n_copies"] == 0)
        if row["outcome"] == "suppressed":
            assert row["strength"] == max(r["strength"] for r in own)
        else:
            assert {r["strength"] for r in own} == set(range(1, 5))
        weaker = {r["strength"] for r in own if r["strength"] < row["strength"]}
        assert all(any(r["band"] == "copy" for r in own if r["strength"] == strength) for strength in weaker)
    assert {row["outcome"] for row in told} > {"suppressed"}


def test_a_worker_makes_the_same_rows_again(config_path: Path, joined: Path, rows: list[dict[str, Any]]) -> None:
    config, run = load(config_path, *ASKED), RunFolder.open(joined)
    work = STAGE.work(run, config)[0]
    again = STAGE.open(run, config).process(STAGE.read(run, config, work)).to_pylist()
    key = ("method", "strength", "seed_index")
    held = [row for row in rows if row["prompt_id"] == again[0]["prompt_id"]]
    assert sorted(again, key=lambda row: [row[k] for k in key]) == sorted(held, key=lambda row: [row[k] for k in key])


def test_an_embedder_that_knows_no_texts_is_refused_before_anything_begins(config_path: Path, joined: Path) -> None:
    with pytest.raises(
        UserError, match='alignment = "pixels-16": this embedder describes no texts; name one that does'
    ):
        audit(config_path, joined, *ASKED, 'mitigation.alignment="pixels-16"', update=True)


def test_other_methods_or_another_number_are_a_named_change(config_path: Path, joined: Path) -> None:
    assert audit(config_path, joined, *ASKED).evaluations == 0
    record = RunFolder.open(joined).record() or {}
    for override, name in (('mitigation.methods=["delay"]', "methods"), ("mitigation.pictures=6", "pictures")):
        config = load(config_path, *ASKED, override)
        changed = changes(record, identities(config, inputs_of(config)))
        assert {field for change in changed for field in change.fields} == {f"mitigation.{name}"}
    with pytest.raises(UserError, match="stage mitigate made part of this run and is left out of the configuration"):
        audit(config_path, joined)


def test_another_line_or_other_harmless_prompts_do_it_again(config_path: Path, joined: Path, tmp_path: Path) -> None:
    """They change under the same fingerprints; what is told of a finding is held against the line that is in force."""
    root = Path(shutil.copytree(joined, tmp_path / "run"))
    before = {work.shard for work in STAGE.work(RunFolder.open(root), load(config_path, *ASKED))}
    audit(config_path, root, *ASKED, "samples.band_prompts=12", update=True)
    after = {manifest.shard for manifest in RunFolder.open(root).table(STAGE.table).current()}
    assert len(after) > 0
    assert not after & before
    assert faults(root) == []


def test_a_method_with_a_target_takes_that_of_harmless_prompts(config_path: Path, joined: Path) -> None:
    config, run = load(config_path, *ASKED, 'mitigation.methods=["sail"]'), RunFolder.open(joined)
    worker = STAGE.open(run, config)
    method = worker._aimed("sail").method  # type: ignore[attr-defined]
    harmless = {row["prompt"] for row in tables(joined)["selection"] if row["purpose"] == "band"}
    case = worker._case("", "")  # type: ignore[attr-defined]
    found = values_of(method, case, sorted(harmless), 4)
    assert method.target == pytest.approx(middle(found), rel=1e-5)


def test_what_the_model_has_nothing_for_is_not_tried_again(config_path: Path, joined: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(joined, tmp_path / "run"))
    assert audit(config_path, root, *ASKED, retry=True).evaluations == 0


def test_a_finding_is_made_again_without_what_was_tried_on_it(
    config_path: Path, joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its embedder of texts need not be here for that."""
    config = load(config_path, *ASKED, 'mitigation.alignment="open_clip:ViT-B-32"')
    monkeypatch.setattr(RunFolder, "config", lambda _: config)
    with open_run(joined) as run:
        prompt = run.view("findings")["prompt_id"].to_pylist()[0]
    assert replay_prompt(joined, prompt).same


def test_validate_says_beforehand_what_the_model_has_nothing_for(config_path: Path) -> None:
    lines = list(validate(load(config_path, *ASKED), 0.0))
    assert [line for line in lines if "mitigation" in line] == [
        "note: mitigation by attention: this model lets nobody steer its attention; take another"
    ]
