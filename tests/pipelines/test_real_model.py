"""A whole audit of a diffusers model, of a few thousand random weights: what a network changes in the promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.operations.replay import replay_prompt
from tests.support.audits import audit, tables
from tests.support.real_audits import assert_same_within_rounding, write_audit

ROOT = Path(__file__).parents[2]
LAB = ROOT / "sharpaudit/lab/data/emoji"


@pytest.fixture(scope="module", params=["epsilon", pytest.param("v_prediction", marks=pytest.mark.chaos)])
def config_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_audit(tmp_path_factory.mktemp("real"), request.param)


def test_other_batches_and_shards_give_the_same_rows_within_rounding(config_path: Path, tmp_path: Path) -> None:
    outcome = audit(config_path, tmp_path / "one")
    audit(config_path, tmp_path / "two", "model.batch_size=5", "run.rows_per_shard=7", "run.samples_per_shard=4")
    assert_same_within_rounding(outcome, tables(tmp_path / "one"), tables(tmp_path / "two"))


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("config_path", ["epsilon"], indirect=True)  # how rows travel depends on no parametrisation
def test_ray_and_local_give_the_same_rows_within_rounding(config_path: Path, tmp_path: Path) -> None:
    outcome = audit(config_path, tmp_path / "one", "run.threads=1")
    for name in ("two", "three"):
        audit(config_path, tmp_path / name, "run.executor=ray", "run.workers=2", "run.threads=1")
    one, two, three = (tables(tmp_path / name) for name in ("one", "two", "three"))
    assert_same_within_rounding(outcome, one, two)
    # The same executor and threads give the same bytes, whichever worker took which shard.
    assert two == three


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
def test_a_trained_network_scores_alike_with_either_executor_and_other_threads(tmp_path: Path) -> None:
    """Some prompts of the quickstart, sharpness within 1e-4 too."""
    for name, n in (("test", 60), ("fit", 100), ("calibration", 99)):
        lines = (LAB / f"prompts/{name}.csv").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.csv").write_text("".join(lines[: n + 1]))
    path = tmp_path / "audit.toml"
    path.write_text((ROOT / "configs/audits/quickstart.toml").read_text().replace("lab:emoji/prompts", str(tmp_path)))
    short = (
        "samples.steps=3",
        "samples.per_prompt=1",
        "samples.band_prompts=4",
        "triage.controls=3",
        "triage.alpha=0.05",
    )
    shards = ("run.rows_per_shard=32", "run.samples_per_shard=4")
    outcome = audit(path, tmp_path / "one", *short, *shards, "run.threads=2")
    audit(path, tmp_path / "two", *short, *shards, "run.executor=ray", "run.workers=2", "run.threads=1")
    one, two = (tables(tmp_path / name) for name in ("one", "two"))
    assert_same_within_rounding(outcome, one, two, sharpness_rounding=1e-4)
    assert {row["metric"] for row in one["scores"]} == {"residual_gap", "noise_gap", "sharpness"}
    assert sum(row["flagged"] for row in one["triage"]) >= 3


def test_a_finished_run_and_its_replay(config_path: Path, tmp_path: Path) -> None:
    outcome = audit(config_path, tmp_path / "run")
    expected = sum(row["evaluations"] for name in ("scores", "samples") for row in tables(tmp_path / "run")[name])
    assert outcome.evaluations > expected > 0
    assert audit(config_path, tmp_path / "run").evaluations == 0
    sampled = tables(tmp_path / "run")["samples"][0]["prompt_id"]
    assert replay_prompt(tmp_path / "run", sampled).same
