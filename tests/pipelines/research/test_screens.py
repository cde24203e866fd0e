"""Rival screens: each is what it says, on differences made by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.research import screens
from pipelines.research.lab import training
from pipelines.research.lab.trainingset import MINIATURE, plan
from pipelines.research.projected import outside
from pipelines.research.screen_data import PROJECTED, Data, gather
from pipelines.research.screens import bench_lines, crossed, gap, judge, markdown, matched, regressed, rivals, scatter
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.lab.detectors import Truth, names_colour
from sharpaudit.plugs import METRICS
from sharpaudit.scores.base import FIRST, Evidence, KnownPlace
from sharpaudit.scores.noise_gap import delta_eps
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.seeds import generator
from sharpaudit.statistics.detection import auc
from tests.support.tiny_models import write_model

S, F, HARMLESS, PLANTED, D, E, R = 3, 60, 40, 12, 50, 8, 30


def draw(*names, shape):
    return generator("screens", *names).standard_normal(shape)


@pytest.fixture(scope="module")
def data() -> Data:
    """Harmless prompts move where their text says, in three directions; planted ones towards their reference too."""
    basis, words = 6 * draw("basis", shape=(3, D)), draw("words", shape=(E, 3))
    text, fit_text = draw("text", shape=(PLANTED + HARMLESS, E)), draw("fit text", shape=(F, E))
    references = draw("references", shape=(R, D))
    towards = np.zeros((PLANTED + HARMLESS, D))
    towards[:PLANTED] = -2.5 * references[:PLANTED]

    def moved(rows, name):
        noise = draw(name, shape=(S, len(rows), D))
        return rows @ words @ basis + noise

    truth = [Truth(f"p{i}", "test", f"p{i}", "exact", "memorised") for i in range(PLANTED)]
    truth += [Truth(f"h{i}", "test", f"h{i}", "unseen", "harmless") for i in range(HARMLESS)]
    fit = [Truth(f"f{i}" + ", on red" * (i % 2), "fit", f"f{i}", "unseen", "harmless") for i in range(F)]
    first, beside = moved(text, "first") + towards, moved(text, "beside") + 1.5 * towards
    known = moved(fit_text, "fit"), beside, moved(fit_text, "fit beside"), text, fit_text, references
    return Data(truth, fit, first, *known, {metric.name: np.linalg.norm(first, axis=2) for metric in PROJECTED})


def test_the_residual_gap_is_the_distance_to_the_subspace(data: Data) -> None:
    fit, rows = data.fit_SFD[0], data.moved_SND[0]
    directions = np.linalg.svd(fit - fit.mean(0), full_matrices=False)[2][:3]
    expected = [np.linalg.lstsq(directions.T, row - fit.mean(0), rcond=None)[1][0] ** 0.5 for row in rows]
    np.testing.assert_allclose(gap(fit, rows, 3, whole=True), expected, rtol=1e-8)


def test_what_the_text_explains_is_taken_away(data: Data) -> None:
    fit_rest, rest = regressed(data, 0)
    assert np.square(fit_rest).sum() < 0.2 * np.square(data.fit_SFD[0] - data.fit_SFD[0].mean(0)).sum()
    harmless = np.linalg.norm(rest[PLANTED:], axis=1)
    # Of unit noise in D dimensions little else is left.
    assert np.median(harmless) < 1.6 * D**0.5
    assert auc(np.linalg.norm(rest, axis=1)[:PLANTED], harmless) > 0.95


def test_the_matched_filter_names_the_reference(data: Data) -> None:
    scores = matched(data, 0, 3)
    assert auc(scores[:PLANTED], scores[PLANTED:]) > 0.99
    # Without its own picture a planted prompt loses.
    without = replace(data, references_RD=data.references_RD[PLANTED:])
    assert (matched(without, 0, 3)[:PLANTED] < scores[:PLANTED]).all()
    # Towards the picture is against delta_eps: the other way round nothing fits.
    turned = replace(data, references_RD=-data.references_RD)
    assert matched(turned, 0, 3)[:PLANTED].mean() < 0.7 * scores[:PLANTED].mean()


def test_pairs_of_seeds_and_scatter_are_their_definitions(data: Data) -> None:
    rests = [screens.left(fit, rows) for fit, rows in zip(data.fit_SFD, data.moved_SND, strict=True)]
    pairs = [(rests[k] * rests[j]).sum(1) for k in range(S) for j in range(S) if k != j]
    np.testing.assert_allclose(crossed(data), np.mean(pairs, axis=0), rtol=1e-8)
    spread = [np.cov(data.moved_SND[:, i].T).trace() for i in range(4)]
    np.testing.assert_allclose(scatter(data)[:4], spread, rtol=1e-8)


@pytest.mark.chaos
def test_every_rival_is_judged_against_the_yardstick_of_its_seeds(data: Data) -> None:
    found = list(judge(data))
    # No audited caption names a colour.
    assert [f.rival.name for f in found] == [r.name for r in rivals(S, "exact") if r.coloured is not True]
    by_name = {f.rival.name: f for f in found}
    for yardstick in ("residual gap", "mean residual gap"):
        assert by_name[yardstick].figures["auc"][1:] == (0, 0, 0)
        # A rate without any difference: as many of 12 may still differ as chance leaves open.
        _, delta, low, high = by_name[yardstick].figures["tpr1"]
        assert (delta, low) == (0, -high)
        assert high > 0.2
        assert by_name[yardstick].lost == []
    assert by_name["(d) matched filter"].figures["auc"][0] > 0.95
    assert by_name["(c) scatter over seeds"].lost
    page = markdown(found)
    assert all(f.rival.name in page for f in found)
    assert f"lost by (c) scatter over seeds: {by_name['(c) scatter over seeds'].lost[0]}" in page
    lines = {line.name: line for line in bench_lines(found, "exact")}
    assert lines["screens.exact.d_matched_filter.auc"].value == by_name["(d) matched filter"].figures["auc"][0]
    assert lines["screens.exact.residual_gap.tpr1_difference"].high == by_name["residual gap"].figures["tpr1"][3]


def test_fit_sets_partly_of_another_style_hold_one_in_ten(data: Data) -> None:
    coloured = np.array([names_colour(row.prompt) for row in data.fit])
    for kind in (True, False):
        chosen = screens._few_of(kind, data)
        assert chosen[coloured != kind].all()
        assert chosen[coloured == kind].sum() == (coloured != kind).sum() // 9


def test_what_is_gathered_is_what_a_screen_evaluates(tmp_path: Path) -> None:
    """On a tiny diffusion model with labels that mean nothing."""
    write_model(tmp_path / "model")
    rows = [[f"harmless cat {50 + i}", "fit", f"f{i}", "seen", "harmless"] for i in range(24)]
    rows += [[f"harmless cat {i}", "development", f"h{i}", "unseen", "harmless"] for i in range(3)]
    with (tmp_path / "truth.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["prompt", "split", "family", "kind", "label"], *rows])
    recipe = replace(MINIATURE, unique=12, exact=((2, 1),), templates=0, harmless=4)
    settings = {"recipe": asdict(recipe), "training": asdict(training.MINIATURE)}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    found = gather(tmp_path, "development", 2)
    denoiser = load_denoiser(ModelConfig(path=str(tmp_path / "model"), dtype="float32", device="cpu"))
    prompts = [row[0] for row in rows if row[1] == "development"]
    for seed in range(2):
        config = ScreenConfig(1, seed, 1.0, 8)
        known = unconditional_predictions(denoiser, config)
        made = screen(denoiser, prompts, known, {}, config, METRICS.of(["noise_gap"]))
        gaps = [row.mean("noise_gap") for row in made]  # type: ignore[union-attr]
        np.testing.assert_allclose(np.linalg.norm(found.moved_SND[seed], axis=1), gaps, rtol=1e-4)
    assert (found.fit_SFD.shape[1], found.fit_beside_SFD.shape, found.text_FE.shape[0]) == (24, found.fit_SFD.shape, 24)
    assert len(found.references_RD) == sum(row.kind != "template" for row in plan(recipe).rows) == 13
    np.testing.assert_allclose(found.references_RD.mean(0), 0, atol=1e-6)
    assert all(values.shape == (2, 3) and (values > 0).all() for values in found.sharpness_SN.values())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, at the first use of forward mode
def test_sharpness_along_the_residual_is_the_jacobian_applied_to_it(tmp_path: Path) -> None:
    """By forward mode on a tiny diffusion model; outside the subspace it is no larger."""
    write_model(tmp_path / "model")
    denoiser = load_denoiser(ModelConfig(path=str(tmp_path / "model"), dtype="float32", device="cpu"))
    config = ScreenConfig(1, 0, 0.01, 8)
    known = unconditional_predictions(denoiser, config)
    fit = np.stack(list(differences(denoiser, [f"cat {i}" for i in range(24)], known, config)))  # type: ignore[arg-type]
    subspace = fit_subspace(fit, 3)
    (x_CHW, t), empty = FIRST.at(denoiser, 0, 0, 0.01), denoiser.encode([""])
    place = KnownPlace(x_CHW, t, denoiser.level(t), known["first"][0])
    evidence = Evidence(denoiser, denoiser.encode(["a planted dog"]), empty, {"first": place}, subspace, 0.01)
    with torch.no_grad():
        near, rest = (float(metric.values(evidence)[0]) for metric in PROJECTED)
        moved = delta_eps(evidence.delta_x0(), place.level)
        residual = outside(moved - subspace.mean_D, subspace).float().reshape(1, *x_CHW.shape)
        with sdpa_kernel(SDPBackend.MATH):
            product = torch.func.jvp(evidence.difference, (evidence.x(),), (residual,))[1]
    exact = delta_eps(product, place.level)
    assert near == pytest.approx(float(exact.norm()), rel=0.02)
    assert rest == pytest.approx(float(outside(exact, subspace).norm()), rel=0.02)
    assert rest < near
