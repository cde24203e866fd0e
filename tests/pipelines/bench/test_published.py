"""The table of published detectors: which prompts are in it, what its cells hold, what stands beside."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.bench import published, trajectory
from pipelines.bench.published import (
    FEW,
    HARMLESS,
    PAPER,
    ROWS,
    SEVERAL,
    bench_lines,
    cells,
    chosen,
    markdown,
    scores,
)
from pipelines.bench.trajectory import EVALUATIONS, NAMES, Seed, tiled_l2
from pipelines.cli import cli
from sharpaudit.errors import UserError
from sharpaudit.lab.detectors import Truth
from sharpaudit.seeds import generator
from tests.support.tiny_models import write_model


def labelled(memorised: int, harmless: int) -> list[Truth]:
    """Half of the captions name a colour; two neighbours and a planted prompt that is not copied are of no use here."""

    def row(i: int, kind: str, label: str) -> Truth:
        ground = "red background" if i % 2 else "on the left"
        return Truth(f"{kind} {i}, {ground}", "test", f"{kind}/{i}", kind, label)

    rows = [row(i, "exact" if i % 4 else "template", "memorised") for i in range(memorised)]
    rows += [row(i, "seen", "harmless") for i in range(harmless)]
    return [*rows, row(0, "unseen", "neighbour"), row(1, "unseen", "neighbour"), row(2, "exact", "harmless")]


def seeds(n_prompts: int, memorised: int, gap: float, many: int) -> list[Seed]:
    draw = generator("trajectories", n_prompts)
    shift = gap * (np.arange(n_prompts) < memorised)
    return [
        Seed(
            {name: draw.standard_normal(n_prompts) + shift for name in NAMES},
            draw.integers(0, 256, (n_prompts, 8, 8, 3)).astype(np.uint8),
            dict.fromkeys(EVALUATIONS, float(n_prompts)),
        )
        for _ in range(many)
    ]


def test_all_memorised_and_stated_harmless_prompts_are_in_it() -> None:
    truth = labelled(50, 400)
    rows, few = chosen(truth, seed=0)
    assert sum(row.label == "memorised" for row in rows) == 50
    assert sum(row.label == "harmless" for row in rows) == HARMLESS
    assert all(row.never_planted for row in rows if row.label == "harmless")
    counts = {label: sum(row.label == label for row in few) for label in FEW}
    assert counts == FEW
    assert set(few) <= set(rows)
    assert chosen(truth[::-1], seed=0) == (rows, few)  # whatever order the file has
    with pytest.raises(UserError, match="0 memorised and 150 harmless prompts"):
        chosen(labelled(0, 400), seed=0)


def test_cells_have_single_seeds_at_one_picture_and_their_mean_at_more() -> None:
    rows, _ = chosen(labelled(30, 200), seed=0)
    made = seeds(len(rows), 30, 100.0, SEVERAL)
    found = {(cell.detector, cell.n, cell.captions): cell for cell in cells(rows, made, (1, SEVERAL))}
    assert {key[:2] for key in found} == {(d, n) for d in ROWS for n in (1, SEVERAL)} - {("tiled_l2", 1)}
    cell = found["sharpness", SEVERAL, "all"]
    assert (cell.memorised, cell.harmless, cell.evaluations, cell.seconds) == (30, HARMLESS, 16, SEVERAL)
    assert cell.auc.mean == 1
    assert cell.tpr1 is not None
    assert cell.tpr1.mean == 1
    free = found["sharpness", SEVERAL, "naming none"]
    assert (free.memorised + free.harmless) < 120
    assert free.tpr1 is None  # of so few harmless prompts 1% is less than one
    assert found["tiled_l2", SEVERAL, "all"].evaluations == 400
    page = markdown([*found.values()])
    assert "| Sharpness (Jeon et al.) | 1 | 4 | 16 | 4000 | 30 | 150 | 1.000" in page
    assert "| 0.998 / 0.982 | 0.991 / 0.895 |" in page
    names = [line.name for line in bench_lines([*found.values()])]
    assert "trajectory.noise_gap_5.n4.tpr1" in names
    assert "trajectory.noise_gap_5.n1.free.auc" in names
    assert len(names) == len(set(names))


def test_scores_are_of_single_seeds_or_of_the_first_together() -> None:
    made = seeds(6, 3, 1.0, 5)
    every = np.stack([seed.values["sharpness"] for seed in made])
    assert (scores("sharpness", made, 1) == every).all()
    np.testing.assert_allclose(scores("sharpness", made, 4), every[:4].mean(0)[None])
    pictures = np.stack([seed.pictures for seed in made[:4]], axis=1)
    assert (scores("tiled_l2", made, 4) == tiled_l2(pictures)[None]).all()


def test_the_paper_s_figures_are_there_for_every_row() -> None:
    assert all(set(figures) == set(ROWS) for figures in PAPER.values())
    pairs = [pair for figures in PAPER.values() for row in figures.values() for pair in row.values()]
    assert all(0 <= tpr < auc <= 1 for auc, tpr in pairs)


def test_the_command_writes_the_table_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SEVERAL": 2, "MANY": 3, "HARMLESS": 4, "FEW": {"memorised": 1, "harmless": 2}}.items():
        monkeypatch.setattr(published, name, value)
    monkeypatch.setattr(trajectory, "CHUNK", 8)
    write_model(tmp_path / "lab" / "model")
    with (tmp_path / "lab" / "truth.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Truth.__dataclass_fields__)
        writer.writerows([[r.prompt, r.split, r.family, r.kind, r.label] for r in labelled(3, 6)])
    call = ["bench", "detection", str(tmp_path / "lab"), "--trajectory", "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(cli, [*call, "--json", str(tmp_path / "x.json"), "--why", "a look"])
    assert outcome.exit_code == 0, outcome.output
    table = (tmp_path / "out" / "test" / "trajectory.md").read_text()
    assert table in outcome.output
    assert {line["name"] for line in json.loads((tmp_path / "x.json").read_text())} >= {"trajectory.sharpness.n3.auc"}
    assert "a look" in (tmp_path / "lab" / "touches.json").read_text()
    monkeypatch.setattr(trajectory, "_rows", None)  # nothing is evaluated again
    again = CliRunner().invoke(cli, call)
    assert again.exit_code == 0, again.output
    with pytest.raises(UserError, match="--trajectory is of a lab's folder"):
        CliRunner().invoke(cli, ["bench", "detection", "x.toml", "--trajectory"], catch_exceptions=False)
