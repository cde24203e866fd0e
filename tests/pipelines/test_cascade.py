"""An audit in tiers: every prompt has an outcome at each, cleared ones cost nothing, and p ranks the whole cascade."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.operations.validate import validate
from pipelines.stages.fit import load_subspaces, load_unconditional, screen_config
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import UserError
from sharpaudit.plugs import METRICS
from sharpaudit.scores.screen import PromptScores, screen
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.tables.runs import RunFolder
from tests.support.audits import audit, command, finish, found_prompts, load, moment, tables, truth

CASCADE = (
    'scores.metrics=["residual_gap"]',
    'scores.then=[{above=0.8, metrics=["residual_gap", "sharpness"], n_seeds=3}]',
)


@pytest.fixture(scope="module")
def root(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cascade") / "run"
    audit(config_path, root, *CASCADE)
    return root


def test_every_prompt_has_an_outcome_at_every_tier(root: Path) -> None:
    made = tables(root)
    scored = {row["prompt_id"] for row in made["corpus"] if row["role"] != "fit"}
    rows = {(row["prompt_id"], row["tier"], row["metric"]): row for row in made["scores"]}
    metrics = [(1, "residual_gap"), (2, "residual_gap"), (2, "sharpness")]
    assert set(rows) == {(prompt, *metric) for prompt in scored for metric in metrics}
    (threshold,) = made["fit/thresholds"]
    assert (threshold["tier"], threshold["metric"], threshold["quantile"]) == (2, "residual_gap", 0.8)
    for prompt in scored:
        goes_on = rows[prompt, 1, "residual_gap"]["value"] >= threshold["threshold"]
        later = [rows[prompt, *metric] for metric in metrics[1:]]
        assert [row["status"] for row in later] == ["ok" if goes_on else "cleared"] * 2
        # One forward a seed for the residual gap; two more for the sharpness, which shares it.
        assert [row["evaluations"] for row in later] == ([3, 6] if goes_on else [0, 0])
        assert all((row["value"] is None) != goes_on for row in later)
    assert json.loads((root / "report/facts.json").read_text())["reconciles"] is True


def test_every_seed_of_residual_gap_is_measured_on_directions_of_its_own(config_path: Path, root: Path) -> None:
    """Read back from the tables: what the fit prompts did at a seed is what its directions explain."""
    made, run = tables(root), RunFolder.open(root)
    fit = {row["prompt_id"] for row in made["corpus"] if row["role"] == "fit"}
    by_seed = {k: [row for row in made["fit/differences"] if row["seed_index"] == k] for k in range(4)}
    assert len(made["fit/differences"]) == 4 * len(fit)
    assert all({row["prompt_id"] for row in rows} == fit for rows in by_seed.values())
    families = {row["prompt_id"]: row["family_id"] for row in made["corpus"]}
    config, subspaces = load(config_path, *CASCADE), load_subspaces(run)
    for k, rows in by_seed.items():
        moved_ND = np.array([row["difference"] for row in rows], dtype=np.float32)
        own = fit_subspace(moved_ND, config.scores.components, [families[row["prompt_id"]] for row in rows])
        np.testing.assert_allclose(subspaces[k].directions_KD, own.directions_KD, atol=1e-6)
    on = [row for row in made["scores"] if row["tier"] == 2 and row["metric"] == "residual_gap" and row["value"]]
    some = [row["prompt"] for row in made["corpus"] if row["prompt_id"] in {row["prompt_id"] for row in on}]
    settings = replace(screen_config(config), n_seeds=3, first_seed=1)
    known = load_unconditional(run, config)
    again = screen(load_denoiser(config.model), some, known, subspaces, settings, METRICS.of(["residual_gap"]))
    values = sorted(entry.mean("residual_gap") for entry in again if isinstance(entry, PromptScores))
    assert values == pytest.approx(sorted(row["value"] for row in on))


def test_a_gate_may_take_the_mean_of_several_seeds(config_path: Path, tmp_path: Path) -> None:
    audit(config_path, tmp_path / "run", *CASCADE, "scores.n_seeds=2", 'scores.metrics=["noise_gap"]')
    made = tables(tmp_path / "run")
    (threshold,) = made["fit/thresholds"]
    gaps: dict[str, list[float]] = {}
    for row in made["fit/differences"]:
        if row["seed_index"] < 2:
            gaps.setdefault(row["prompt_id"], []).append(row["noise_gap"])
    assert threshold["threshold"] == pytest.approx(np.quantile([np.mean(pair) for pair in gaps.values()], 0.8))
    assert threshold["n"] == len(gaps)


def test_p_is_the_rank_of_the_last_tier_and_then_of_the_score(root: Path) -> None:
    triage = [row for row in tables(root)["triage"] if row["role"] != "fit"]
    calibration = [(row["tier"], row["value"]) for row in triage if row["role"] == "calibration"]
    for row in triage:
        if row["role"] == "audit":
            above = sum(other >= (row["tier"], row["value"]) for other in calibration)
            assert row["p_value"] == pytest.approx((1 + above) / (len(calibration) + 1))
    # A fifth of the harmless goes on, give or take three standard deviations.
    share = Counter(tier for tier, _ in calibration)[2] / len(calibration)
    assert abs(share - 0.2) < 3 * (0.2 * 0.8 / len(calibration)) ** 0.5 + 0.05


def test_what_is_planted_is_found(config_path: Path, root: Path) -> None:
    assert truth(config_path, "strong") <= set(found_prompts(root))
    page = (root / "report/index.html").read_text()
    assert "The screen has 2 tiers" in page
    assert "go on above" in page


@pytest.mark.chaos
def test_shards_of_another_size_change_nothing(config_path: Path, root: Path, tmp_path: Path) -> None:
    audit(config_path, tmp_path / "run", *CASCADE, "run.rows_per_shard=23")
    one, other = tables(root), tables(tmp_path / "run")
    for a, b in zip(one["scores"], other["scores"], strict=True):
        assert [a[name] for name in ("prompt_id", "tier", "status")] == [
            b[name] for name in ("prompt_id", "tier", "status")
        ]
    for a, b in zip(one["triage"], other["triage"], strict=True):
        assert (a["tier"], a["p_value"], a["flagged"]) == (b["tier"], b["p_value"], b["flagged"])


@pytest.mark.chaos
@pytest.mark.parametrize("stage", ["fit_thresholds", "score"])
def test_a_killed_cascade_is_resumed(config_path: Path, root: Path, tmp_path: Path, stage: str) -> None:
    settings = [word for setting in CASCADE for word in ("--set", setting)]
    point = moment(root, stage, 0)
    crash = f"{point}:1:kill@{tmp_path}/struck"
    code, _, err = finish(command("run", config_path, "--out", tmp_path / "run", *settings, crash=crash))
    assert code == -signal.SIGKILL, err
    audit(config_path, tmp_path / "run", *CASCADE)
    assert tables(tmp_path / "run") == tables(root)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
def test_ray_workers_make_the_same_cascade(config_path: Path, root: Path, tmp_path: Path) -> None:
    audit(config_path, tmp_path / "run", *CASCADE, "run.executor=ray", "run.workers=2", "run.threads=1")
    assert tables(tmp_path / "run") == tables(root)


def test_a_finished_cascade_is_left_alone_and_a_changed_one_is_named(config_path: Path, root: Path) -> None:
    assert audit(config_path, root, *CASCADE).evaluations == 0
    with pytest.raises(UserError, match=r"scores\.then"):
        audit(config_path, root, CASCADE[0], CASCADE[1].replace("0.8", "0.5"))


def test_validate_plans_what_goes_on(config_path: Path) -> None:
    (line,) = [line for line in validate(load(config_path, *CASCADE), measure_s=0.0) if line.startswith("plan:")]
    # The empty prompt at four seeds, and the fit prompts at all four.
    assert f"fit_unconditional 4, fit_differences {4 * 120}" in line
    # 49 audited and 120 calibration prompts: one evaluation each, nine more for a fifth of them.
    assert f"score {49 + 120 + round(169 * 0.2 * 9)}" in line


def test_another_deciding_metric_gets_a_threshold_of_its_own(config_path: Path, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "run")
    changed = ('scores.metrics=["noise_gap", "residual_gap"]', CASCADE[1])
    audit(config_path, tmp_path / "run", *changed, update=True)
    (threshold,) = tables(tmp_path / "run")["fit/thresholds"]
    assert threshold["metric"] == "noise_gap"
    fit = [row["noise_gap"] for row in tables(root)["fit/differences"] if row["seed_index"] == 0]
    assert threshold["threshold"] == pytest.approx(np.quantile(fit, 0.8))
