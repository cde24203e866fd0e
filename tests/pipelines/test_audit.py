"""A whole audit: what it finds, that it accounts for every row, and that nothing is done twice."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from pipelines.flow.outcome import Outcome
from sharpaudit import config as configuration
from sharpaudit.errors import IntegrityError, UserError
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import MATCHES, RUN_TABLES, SAMPLES, SCORES, THRESHOLDS
from tests.support.audits import ALWAYS, audit, found_prompts, load, stray, tables, truth


def copy(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root, tmp_path / "run")
    return tmp_path / "run"


def test_what_is_planted_is_found_and_nothing_else(config_path: Path, clean: Path) -> None:
    found = found_prompts(clean)
    assert truth(config_path, "strong") <= set(found)
    # The line of a copy is the highest of 20 band samples, so a harmless prompt may pass it by chance; barely.
    assert all(found[prompt] > 0.95 for prompt in truth(config_path, "strong"))
    assert all(found[prompt] < 0.8 for prompt in truth(config_path, "harmless") & set(found))


def test_every_row_is_accounted_for(clean: Path) -> None:
    made = tables(clean)
    prompts = {row["prompt_id"]: row["role"] for row in made["corpus"]}
    assert {row["prompt_id"] for row in made["triage"]} == set(prompts)
    scored = {row["prompt_id"] for row in made["scores"]}
    assert scored == {p for p, role in prompts.items() if role != "fit"}
    assert {row["prompt_id"] for row in made["fit/differences"]} == {p for p, role in prompts.items() if role == "fit"}
    wanted = sum(row["n_samples"] for row in made["triage"])
    assert len(made["samples"]) == wanted > 0
    assert {row["sample_id"] for row in made["matches"]} == {row["sample_id"] for row in made["samples"]}
    assert json.loads((clean / "report/facts.json").read_text())["reconciles"] is True


def test_the_noise_floor_stands_in_the_record_and_in_the_report(config_path: Path, clean: Path, tmp_path: Path) -> None:
    measured = max(row["noise_floor"] for row in tables(clean)["fit/unconditional"])
    assert (RunFolder.open(clean).record() or {})["noise_floor"] == measured
    assert json.loads((clean / "report/facts.json").read_text())["noise_floor"] == measured
    root = copy(clean, tmp_path)
    audit(config_path, root, "model.batch_size=5")
    assert (RunFolder.open(root).record() or {})["noise_floor"] == measured


def test_three_metrics_cost_three_evaluations_a_prompt(clean: Path) -> None:
    made = tables(clean)["scores"]
    prompts = {row["prompt_id"] for row in made}
    assert sum(row["evaluations"] for row in made) == 3 * len(prompts)
    assert {row["metric"] for row in made} == {"residual_gap", "noise_gap", "sharpness"}


def test_a_run_folder_holds_what_was_promised_and_no_leftovers(clean: Path) -> None:
    for name in ("run.json", "config.toml", "inputs.json", "findings.csv", "audit.duckdb", "report/index.html"):
        assert (clean / name).is_file(), name
    assert not stray(clean)
    assert not (clean / "run.lock").exists()
    assert clean.stat().st_mode & 0o777 == 0o700


def test_a_finished_run_is_left_alone(config_path: Path, clean: Path) -> None:
    def times() -> dict[Path, int]:
        paths = (path for path in clean.rglob("*") if path.is_file())
        outside = ("progress.json", ".takeover", "run.jsonl")
        return {path: path.stat().st_mtime_ns for path in paths if path.name not in outside}

    before = times()
    begun = time.monotonic()
    assert audit(config_path, clean).evaluations == 0
    assert time.monotonic() - begun < 20
    assert times() == before


def test_batches_shards_and_threads_change_no_bit(config_path: Path, clean: Path, tmp_path: Path) -> None:
    cut = ["run.rows_per_shard=7", "run.samples_per_shard=5", "model.batch_size=3", "run.threads=2"]
    audit(config_path, tmp_path / "run", *cut)
    assert tables(tmp_path / "run") == tables(clean)


def test_order_and_repetition_of_the_corpus_change_no_value(config_path: Path, clean: Path, tmp_path: Path) -> None:
    source = config_path.parent / "testbed/prompts/audit.csv"
    header, *rows = source.read_text().splitlines()
    other = tmp_path / "audit.csv"
    other.write_text("\n".join([header, *reversed(rows), *rows[:5]]) + "\n")
    audit(config_path, tmp_path / "run", f"corpus.audit={other}")
    left, right = tables(tmp_path / "run"), tables(clean)
    assert left.pop("origins") != right.pop("origins")
    assert left == right


def planned(said: io.StringIO) -> dict[str, str]:
    """What was said of each stage before anything was redone."""
    messages = [json.loads(line).get("message", "") for line in said.getvalue().splitlines()]
    before = "\n".join(messages).split("calibration:")[0]
    return dict(re.findall(r"^(\w+): (stays|redone) \([\d,]+ rows, [\d,]+ s of work\)$", before, re.MULTILINE))


def test_a_changed_alpha_is_refused_then_redoes_triage_alone(config_path: Path, clean: Path, tmp_path: Path) -> None:
    root = copy(clean, tmp_path)
    before = tables(root)
    with pytest.raises(UserError, match=r"triage\.alpha = 0\.02 \(now 0\.1\); add --update"):
        audit(config_path, root, "triage.alpha=0.1")
    assert tables(root) == before
    said = io.StringIO()
    outcome = audit(config_path, root, "triage.alpha=0.1", update=True, said=said)
    assert planned(said) == dict.fromkeys(ALWAYS, "stays") | {"triage": "redone", "selection": "redone"}
    assert "prompts that are newly selected are generated and matched" in said.getvalue()
    after = tables(root)
    assert after["scores"] == before["scores"]
    flagged = [{row["prompt_id"] for row in made["triage"] if row["flagged"]} for made in (before, after)]
    assert flagged[0] < flagged[1]
    kept = {row["sample_id"] for row in before["samples"]}
    fresh = [row for row in after["samples"] if row["sample_id"] not in kept]
    assert outcome.evaluations == sum(row["evaluations"] for row in fresh) > 0
    for table in (SCORES, SAMPLES, MATCHES):
        old = {m.shard: m for m in RunFolder.open(clean).table(table).manifests()}
        new = {m.shard: m for m in RunFolder.open(root).table(table).manifests()}
        assert {name: new[name] for name in old} == old
    # The same as if the run had begun with that alpha.
    audit(config_path, tmp_path / "direct", "triage.alpha=0.1")
    direct = tables(tmp_path / "direct")
    assert direct["triage"] == after["triage"]
    current = {row["sample_id"] for row in direct["samples"]}
    assert [row for row in after["matches"] if row["sample_id"] in current] == direct["matches"]


def test_a_changed_dtype_redoes_everything(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy(clean, tmp_path)
    for module in ("flow.identity", "stages.inputs"):
        monkeypatch.setattr(f"pipelines.{module}.placement", lambda *_, **__: (torch.device("cpu"), torch.bfloat16))
    with pytest.raises(UserError, match=r"model\.dtype = float32 \(now bfloat16\)"):
        audit(config_path, root)
    said = io.StringIO()
    outcome = audit(config_path, root, update=True, said=said)
    assert planned(said) == dict.fromkeys(ALWAYS, "redone")
    made = tables(root)
    fit = sum(row["evaluations"] for row in made["fit/differences"] + made["fit/unconditional"])
    assert outcome.evaluations == fit + sum(row["evaluations"] for row in made["scores"] + made["samples"])


CHANGED = {
    "seed": 1,
    "scores.n_seeds": 2,
    "scores.components": 5,
    "scores.metrics": ["residual_gap", "sharpness_jvp"],
    "scores.step": 0.5,
    "triage.flag_by": "q",
    "triage.alpha": 0.3,
    "triage.q": 0.2,
    "triage.procedure": "benjamini-yekutieli",
    "triage.exclude_calibration": ["c0ffee"],
    "triage.controls": 7,
    "samples.solver": "dpm-solver++",
    "samples.steps": 5,
    "samples.guidance": 2.0,
    "samples.per_prompt": 3,
    "samples.band_prompts": 9,
    "matches.neighbours": 2,
    "matches.near_quantile": 0.5,
    "matches.band_exceptions": 2,
}
ELSEWHERE = {
    "model.dtype",  # below
    "scores.then",  # test_cascade.py
    "stages",  # contracts/test_plugs.py
    *(
        "mitigation.methods",
        "mitigation.pictures",
        "mitigation.alignment",
    ),  # of a stage that this audit is without: stages/test_mitigate.py
    # This machine and this release know one of each; another index of the same profile: test_changed_inputs.py.
    *("model.device", "matches.profiles"),
}


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_a_changed_identity_field_is_refused_by_name(config_path: Path, clean: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} = .* \(now {re.escape(str(CHANGED[name]))}\).*--update") as caught:
        audit(config_path, clean, f"{name}={CHANGED[name]}")
    assert not [other for other in CHANGED if other != name and f"{other} = " in str(caught.value)]


def test_the_list_of_identity_fields_is_complete() -> None:
    identity = {name for name, info in configuration.fields().items() if info["class"] == "identity"}
    assert identity == set(CHANGED) | ELSEWHERE


RUNTIME = {
    "name": "other",
    "model.batch_size": 5,
    "matches.batch_size": 7,
    "matches.vectors": "disk",
    "report.max_findings": 3,
    "report.show_images": True,
    "run.executor": "ray",
    "run.threads": 1,
    "run.rows_per_shard": 9,
    "run.samples_per_shard": 5,
    "run.workers": 2,
    "run.num_gpus": 0.5,
    "run.deadline": "2999-01-01T00:00",
    "run.max_rejected": 0.5,
    "run.max_worker_deaths": 5,
    "run.shard_timeout_s": 60.0,
}
RUNTIME_ELSEWHERE = {
    # Where things lie: their content is known by digest (tests of copied runs, of snapshots and of indexes).
    *("model.path", "model.repo", "model.revision", "matches.index", "matches.weights"),
    "matches.weights_sha256",  # vouches for weights, whose digest is in that of the index (test_sscd.py)
    "matches.search",  # needs a structure, whose digest is an identity (test_index.py)
    "run.address",  # a running cluster (test_ray.py)
    "run.limit",  # audits more or fewer rows (below)
}


@pytest.mark.parametrize("name", sorted(RUNTIME))
def test_a_changed_runtime_field_resumes(config_path: Path, clean: Path, tmp_path: Path, name: str) -> None:
    assert audit(config_path, copy(clean, tmp_path), f"{name}={RUNTIME[name]}").evaluations == 0


def test_the_list_of_runtime_fields_is_complete() -> None:
    told = {name for name, info in configuration.fields().items() if info["class"] == "runtime"}
    assert told == set(RUNTIME) | RUNTIME_ELSEWHERE


def test_other_input_is_another_run(config_path: Path, clean: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.id_column was 'id' and is now 'prompt'"):
        audit(config_path, clean, "corpus.id_column=prompt")
    other = tmp_path / "audit.csv"
    other.write_text("id,prompt\n1,Another prompt altogether\n")
    with pytest.raises(UserError, match=r"input audit:audit\.csv has changed since the run began"):
        audit(config_path, clean, f"corpus.audit={other}", update=True)


def test_a_larger_limit_adds_prompts_and_keeps_what_was_done(config_path: Path, clean: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    audit(config_path, root, "run.limit=20")
    small = tables(root)
    outcome = audit(config_path, root)
    grown, whole = tables(root), tables(clean)
    assert {row["prompt_id"] for row in grown["corpus"]} == {row["prompt_id"] for row in whole["corpus"]}
    assert grown["scores"] == whole["scores"]
    assert grown["triage"] == whole["triage"]
    assert len(small["scores"]) < len(grown["scores"])
    redone = sum(row["evaluations"] for row in small["scores"])
    assert outcome.evaluations < sum(row["evaluations"] for row in whole["scores"] + whole["samples"]) - redone / 2


def test_a_file_that_was_read_to_its_end_is_not_read_again(
    config_path: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("prompt files are read again")

    monkeypatch.setattr("pipelines.stages.ingest.assign", refuse)
    assert audit(config_path, clean).evaluations == 0
    assert audit(config_path, clean, "run.limit=100000").evaluations == 0


def test_a_damaged_table_is_refused_by_name(config_path: Path, clean: Path, tmp_path: Path) -> None:
    root = copy(clean, tmp_path)
    for table in RUN_TABLES:
        folder = RunFolder.open(root).table(table)
        if table is THRESHOLDS:  # only a cascade has any
            continue
        path = folder.path(folder.current()[0])
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(IntegrityError, match=path.name):
            tables(root)
        path.write_bytes(whole)
    assert tables(root) == tables(clean)


def test_a_folder_that_is_no_run_is_not_touched(config_path: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no run"):
        audit(config_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_a_driver_left_before_it_began_is_taken_up(
    config_path: Path, clean: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    for name in (".run.json-0.inprogress", ".probe-0.inprogress", ".run.lock-0.inprogress", ".takeover"):
        (root / name).write_text("half")
    audit(config_path, root)
    assert tables(root) == tables(clean)
    assert not stray(root)


def test_the_outcome_carries_the_facts_of_the_report(config_path: Path, clean: Path) -> None:
    outcome: Outcome = audit(config_path, clean)
    assert outcome.facts == json.loads((clean / "report/facts.json").read_text())
    assert load(config_path).name == "small"
