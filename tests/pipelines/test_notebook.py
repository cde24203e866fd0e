"""The notebook of the docs runs from its first cell to its last, on an audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs/analysis.ipynb"


def test_every_cell_of_the_notebook_runs(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("agg")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(clean)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    told: dict[str, Any] = {}
    monkeypatch.setattr("matplotlib.figure.Figure.show", lambda self: None)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, {cell['id']}", "exec"), told)
    assert len(told["findings"]) > 0
    assert len(told["groups"]["findings"]) == len(told["findings"])


def test_the_notebook_shows_what_it_printed() -> None:
    """Its outputs are kept, so that it can be read without being run; none of them is an error."""
    code = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum(output["output_type"] == "execute_result" for output in outputs) >= 4
    assert not [output for output in outputs if output["output_type"] == "error"]
