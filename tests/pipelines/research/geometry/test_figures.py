"""Figures: each writes a picture and its numbers, which are those of the matrices; nothing is computed twice."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.linalg import eigh

from pipelines.cli import cli
from pipelines.research.geometry import lab_figures, prompts, toys
from pipelines.research.geometry.drawing import Asked
from pipelines.research.geometry.figures import FIGURES, make
from sharpaudit.errors import UserError
from sharpaudit.lab.detectors import Truth
from sharpaudit.spectra.hessian import BRANCHES
from tests.support.tiny_models import write_model

LABELS = {("exact", "memorised"): 2, ("seen", "harmless"): 1}
"""Prompts of two of the groups: the others have none, and empty panels."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose prompts have labels."""
    folder = tmp_path_factory.mktemp("geometry") / "lab"
    write_model(folder / "model")
    with (folder / "truth.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Truth.__dataclass_fields__)
        writer.writerows(
            [
                [f"cat {kind} {label} {i}", "test", f"{kind}/{label}/{i}", kind, label]
                for (kind, label), many in LABELS.items()
                for i in range(many)
            ]
        )
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def shown(out: Path, name: str) -> list[dict[str, str]]:
    """The rows of a figure whose picture is one and not blank."""
    picture = np.asarray(Image.open(out / f"{name}.png").convert("L"))
    assert picture.shape[0] > 200
    assert picture.min() < 100 < picture.max()
    return rows_of(out / f"{name}.csv")


@pytest.mark.parametrize("name", ["identities", "fisher-rao"])
def test_closed_forms_are_drawn(name: str, lab: Path, tmp_path: Path) -> None:
    make(name, Asked(lab, tmp_path / "kept"), tmp_path)
    assert len(shown(tmp_path, name)) > 40


@pytest.mark.parametrize(("name", "recipe"), [("plane", "PLANE"), ("digits", "DIGITS")])
def test_small_models_are_trained_and_drawn(
    name: str, recipe: str, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys, recipe, replace(getattr(toys, recipe), width=32, steps=20, batch=32))
    make(name, Asked(lab, tmp_path / "kept"), tmp_path)
    rows = shown(tmp_path, name)
    assert {row["step"] for row in rows} == {"first", "middle", "last"}
    if name == "plane":
        assert all(float(row["exact smaller"]) <= float(row["exact larger"]) < 0 for row in rows)
    else:
        assert {row["class"] for row in rows} == {"nine", "three"}


def test_spectra_of_a_lab_are_those_of_its_matrices(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "STEPS", 3)
    monkeypatch.setattr(lab_figures, "DRAWS", 2)
    asked = Asked(lab, tmp_path / "kept", few=2)
    for name in ("spectra", "branches", "generalised"):
        make(name, asked, tmp_path)
    rows = shown(tmp_path, "spectra")
    assert Counter((row["draw"], row["step"]) for row in rows) == {("0", "1"): 3, ("1", "1"): 2, ("0", "3"): 2}
    model = asked.model()
    first = rows[0]["prompt"]
    matrices = model.at(first).matrices()
    found = {branch: matrix for branch, (matrix, _) in matrices.items()}
    added = np.linalg.eigvalsh(found["difference"])
    assert float(rows[0]["smallest"]) == pytest.approx(added[0], rel=1e-3)
    assert int(rows[0]["not negative"]) == (added >= 0).sum()
    assert float(rows[0]["asymmetry"]) == pytest.approx(matrices["difference"][1], rel=1e-3)
    for k, step in ((1, 1), (0, 3)):
        there = next(row for row in rows if (row["draw"], row["step"], row["prompt"]) == (str(k), str(step), first))
        whole = np.linalg.eigvalsh(model.at(first, k, step).matrices()["difference"][0])
        assert [float(there[end]) for end in ("smallest", "largest")] == pytest.approx([whole[0], whole[-1]], rel=1e-3)
    given, empty = (-found[branch] for branch in BRANCHES[:2])
    beside = shown(tmp_path, "generalised")[0]
    if np.linalg.eigvalsh(given)[0] > 0:
        assert float(beside["largest"]) == pytest.approx(eigh(empty, given, eigvals_only=True)[-1], rel=1e-3)
    else:
        assert beside["definite"] == "False"
    assert 0 <= float(shown(tmp_path, "branches")[0]["conditional below unconditional"]) <= 1
    # A second call computes nothing.
    monkeypatch.setattr(prompts, "at_step", None)
    before = (tmp_path / "spectra.csv").read_bytes()
    make("spectra", asked, tmp_path)
    assert (tmp_path / "spectra.csv").read_bytes() == before


def test_traces_along_a_sample_are_those_of_the_matrices(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "STEPS", 4)
    model = Asked(lab, lab, few=1).model()
    (prompt,) = model.prompts["exact"]
    rows = list(prompts.along(model, prompt, 0, probes=64))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for number in (1, 4):
        H = model.at(prompt, step=number).matrices()["conditional"][0]
        row = rows[number - 1]
        for name, power in (("-tr H", H), ("-tr H^3", H @ H @ H)):
            assert abs(row[name] + np.trace(power)) < 4 * row[f"{name} error"]
        assert row["|s|^2"] > 0


def test_the_command_names_its_figures(lab: Path, tmp_path: Path) -> None:
    call = [
        "bench",
        "figures",
        str(lab),
        "--only",
        "fisher-rao",
        "--out",
        str(tmp_path),
        "--work",
        str(tmp_path / "kept"),
    ]
    outcome = CliRunner().invoke(cli, call)
    assert outcome.exit_code == 0, outcome.output
    assert "fisher-rao.png" in outcome.output
    with pytest.raises(UserError, match=r"--only planes: no figure has that name \(did you mean .plane.\?\)"):
        CliRunner().invoke(cli, ["bench", "figures", "--only", "planes"], catch_exceptions=False)
    told = CliRunner().invoke(cli, ["bench", "figures", "--help"]).output
    assert all(name in told for name in FIGURES)
