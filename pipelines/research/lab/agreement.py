"""How far labels depend on the instrument that tells copies, and on guidance: generations.csv of a lab folder.

One row for each prompt and guidance at which it was generated, with what both instruments count.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.research.lab.labels import INSTRUMENTS, Judged, Plants, copied, judge
from pipelines.research.lab.trainingset import Prompt
from sharpaudit.statistics.intervals import upper_bound
from sharpaudit.tables.records import export_file

GENERATIONS = "generations.csv"
Chosen = Mapping[str, str]
"""Why captions are generated."""


@dataclass(frozen=True)
class Counted:
    """A prompt at a guidance.

    chosen: why it was generated: planted, ranked or drawn. own, other: generations that copy its own or another plant,
    by each instrument. disputed: generations of which the instruments do not say the same.
    """

    prompt: str
    chosen: str
    kind: str
    guidance: float
    generations: int
    pixels_own: int
    pixels_other: int
    regions_own: int
    regions_other: int
    disputed: int

    def label(self, instrument: str) -> str:
        """The label that an instrument alone would give."""
        own, other = getattr(self, f"{instrument}_own"), getattr(self, f"{instrument}_other")
        if own:
            return "memorised" if 2 * own >= self.generations else "partly"
        return "neighbour" if other else "harmless"

    @property
    def disputed_label(self) -> bool:
        """Whether the instruments would label the prompt differently."""
        return self.label("pixels") != self.label("regions")


def count(
    plants: Plants,
    prompts: Sequence[Prompt],
    chosen: Chosen,
    guidance: float,
    pictures_NGHWC: npt.NDArray[np.uint8],
) -> list[Counted]:
    """What both instruments count in the generations of each prompt, (N, G, H, W, 3)."""
    first, second = (judge(plants, prompts, pictures_NGHWC, copies) for copies in INSTRUMENTS.values())
    disputed = _disputed(plants, pictures_NGHWC)
    return [
        Counted(a.prompt.caption, chosen[a.prompt.caption], a.prompt.kind, guidance, a.n_generations, *_counts(a, b), n)
        for a, b, n in zip(first, second, disputed, strict=True)
    ]


def _counts(first: Judged, second: Judged) -> tuple[int, int, int, int]:
    return first.own, first.other, second.own, second.other


def _disputed(plants: Plants, pictures_NGHWC: npt.NDArray[np.uint8]) -> Iterator[int]:
    both = (copied(plants, pictures_NGHWC, copies) for copies in INSTRUMENTS.values())
    for first_GP, second_GP in zip(*both, strict=True):
        yield int((first_GP != second_GP).any(axis=1).sum())


def write_generations(folder: Path, rows: Sequence[Counted]) -> None:
    """Write FOLDER/generations.csv."""
    export_file(folder / GENERATIONS, _text(rows).encode())


def _text(rows: Sequence[Counted], *, head: bool = True) -> str:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(asdict(row) | {"guidance": f"{row.guidance:g}"} for row in rows)
    return text.getvalue()


def read_generations(folder: Path) -> list[Counted]:
    """The rows of FOLDER/generations.csv."""
    return _read(folder / GENERATIONS)


def _read(path: Path) -> list[Counted]:
    types = {field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Counted)}
    with path.open(encoding="utf-8", newline="") as stream:
        return [Counted(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(stream)]


class Kept:
    """Counts of prompts as they come, in a file that a labelling which was stopped goes on with.

    A line that was cut off in the middle is not believed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Counted] = []
        if path.exists():
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
            export_file(path, f"{whole}\n".encode())
            self.rows = _read(path)
        else:
            export_file(path, _text([]).encode())

    def add(self, rows: Sequence[Counted]) -> None:
        """Append rows."""
        with self._path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(_text(rows, head=False))
        self.rows += rows


COLUMNS = [field.name for field in fields(Counted)]


@dataclass(frozen=True)
class Agreement:
    """At one guidance: prompts and generations, and of how many both instruments say the same."""

    guidance: float
    prompts: int
    same_labels: int
    generations: int
    same: int


def agreement(rows: Sequence[Counted]) -> list[Agreement]:
    """Of every guidance, the first to be generated first."""
    found = []
    for guidance in dict.fromkeys(row.guidance for row in rows):
        some = [row for row in rows if row.guidance == guidance]
        same = sum(not row.disputed_label for row in some)
        n = sum(row.generations for row in some)
        found.append(Agreement(guidance, len(some), same, n, n - sum(row.disputed for row in some)))
    return found


def never_generated_copy(rows: Sequence[Counted]) -> tuple[int, int, float]:
    """Drawn prompts that copy a plant, how many were drawn, and the upper 95% bound of the share behind them.

    Drawn ones stand for all that no metric ranks high, so the bound holds for those that were never generated.
    """
    drawn = [row for row in rows if row.chosen == "drawn" and row.guidance == rows[0].guidance]
    found = sum(bool(row.pixels_own or row.pixels_other) for row in drawn)
    return found, len(drawn), upper_bound(found, len(drawn), 0.95)
