"""What every figure of `sharpaudit bench figures` is made of: a picture and its numbers, NAME.png and NAME.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.research.geometry.prompts import Model
from sharpaudit.errors import UserError
from sharpaudit.tables.records import export_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"exact": "#a4341f", "template": "#5b2a86", "partly": "#d99a3d", "not memorised": "#7f97a3"}
Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Asked:
    """lab: a lab's folder. kept: where what takes long is kept. few: of every group so many prompts at most."""

    lab: Path
    kept: Path
    few: int | None = None

    def model(self) -> Model:
        """The lab's model and prompts."""
        found = Model.of(self.lab)
        return Model(found.denoiser, {group: some[: self.few] for group, some in found.prompts.items()})


@dataclass(frozen=True)
class Made:
    """figure: for people. rows: its numbers."""

    figure: Figure
    rows: Rows

    def write(self, name: str, out: Path) -> None:
        """OUT/NAME.png and OUT/NAME.csv."""
        picture, text = io.BytesIO(), io.StringIO(newline="")
        self.figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in self.rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in self.rows)
        out.mkdir(parents=True, exist_ok=True)
        export_file(out / f"{name}.png", picture.getvalue())
        export_file(out / f"{name}.csv", text.getvalue().encode())


def panels(rows: int, columns: int, width: float = 3.4, height: float = 2.9) -> tuple[Figure, Any]:
    """A figure and its axes, (rows, columns). Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('figures are drawn with matplotlib: pip install "sharpaudit[figures]"') from error
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
