"""The bench of directions: its columns are what they say, and a number of directions that costs AUC misses the goal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.bench.lines import unmet
from pipelines.research import directions
from pipelines.research.directions import KS, bench_lines, markdown, of_differences
from sharpaudit.scores.residual_gap import residual_gap
from sharpaudit.scores.subspace import fit_subspace, principal_directions, typical
from sharpaudit.seeds import generator
from sharpaudit.statistics.detection import auc

D, TRUE = 80, 6


def drawn(name, n, detail=0.0):
    common = generator("directions", "common")
    basis, rng = common.standard_normal((TRUE, D)), generator("directions", name)
    own = rng.standard_normal((n, D))
    far = 6 * rng.standard_normal((n, TRUE)) @ basis
    return (far + own + detail * generator("directions", name, "detail").standard_normal((n, D))).astype(np.float32)


@pytest.fixture(scope="module")
def found():
    fit, rows = drawn("fit", 200), np.concatenate([drawn("memorised", 30, 0.8), drawn("harmless", 100)])
    return of_differences(fit, [str(i) for i in range(200)], rows, np.arange(130) < 30), fit, rows


def test_every_column_is_its_definition(found):
    made, fit, rows = found
    kept = fit[typical(fit)]
    mean, basis, shares = principal_directions(kept, D)
    assert made.ks[:-1] == [k for k in KS if k < D]
    np.testing.assert_allclose(made.taught, [shares[:k].sum() for k in made.ks], rtol=1e-6)
    assert made.n_fit == len(kept)
    assert made.holding[1] == int(np.flatnonzero(np.cumsum(shares) >= 0.95)[0]) + 1 <= TRUE
    for k in (5, 10):
        gaps = np.square(rows - mean - (rows - mean) @ basis[:k].T @ basis[:k]).sum(axis=1)
        assert made.auc[made.ks.index(k)] == pytest.approx(auc(gaps[:30], gaps[30:]), abs=1e-3)
    # The last column is the metric of an audit that asks for "auto".
    scores = residual_gap(torch.from_numpy(rows), fit_subspace(fit, "auto")).numpy()
    assert made.auc[-1] == pytest.approx(auc(scores[:30], scores[30:]), abs=1e-3)
    # Strangers have less of their variance there than those that taught it.
    assert (made.strangers < made.taught).all()


def test_too_few_directions_miss_the_goal(found, monkeypatch):
    assert unmet(list(bench_lines([found[0]])), []) == []
    monkeypatch.setattr(directions, "choose_components", lambda *_: 1)
    made = of_differences(found[1], [str(i) for i in range(200)], found[2], np.arange(130) < 30)
    (missed,) = unmet(list(bench_lines([made])), [])
    assert missed.startswith("directions.auto.auc_loss is 0.")
    assert "| auto: 1 |" in markdown([made])
    assert "95% of the variance in" in markdown([made])
