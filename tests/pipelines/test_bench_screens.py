"""Rival screens: each is what it says, on differences made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.bench import screens
from pipelines.bench.gathering import Data
from pipelines.bench.screens import crossed, gap, judge, markdown, matched, regressed, rivals, scatter
from sharpaudit.lab.detectors import Truth
from sharpaudit.seeds import generator
from sharpaudit.statistics.detection import auc

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
    return Data(
        truth, fit, first, moved(fit_text, "fit"), beside, moved(fit_text, "fit beside"), text, fit_text, references
    )


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
    assert [f.rival.name for f in found] == [rival.name for rival in rivals(S, "exact")]
    by_name = {f.rival.name: f for f in found}
    for yardstick in ("residual gap", "mean residual gap"):
        assert all(figures[1:] == (0, 0, 0) for figures in by_name[yardstick].figures.values())
    assert by_name["(d) matched filter"].figures["auc"][0] > 0.95
    page = markdown(found)
    assert all(f.rival.name in page for f in found)
