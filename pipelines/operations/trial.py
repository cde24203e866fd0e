"""Other texts tried as a run's own prompts: drawn, searched, held against its lines, and scored by its screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from pipelines.operations import older
from pipelines.operations.replay import require_same
from pipelines.stages.bands import run_bands
from pipelines.stages.fit import load_subspaces, load_unconditional, screen_config
from pipelines.stages.inputs import run_model, run_search
from pipelines.stages.search import Outcome
from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import Pixels
from sharpaudit.matches.decide import COPY, band_of
from sharpaudit.matches.index import ReferenceIndex
from sharpaudit.samples.generate import Generator
from sharpaudit.scores.cascade import screen_tiers, tiers
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import BANDS

NEIGHBOURS = 100
"""Training pictures that are looked at: what was memorised often stands many times in a training set."""


@dataclass
class Drawn:
    """Pictures of a text. copies: of each, which training pictures it copies."""

    pictures: list[Pixels | Status] = field(default_factory=list)
    copies: list[frozenset[str]] = field(default_factory=list)

    def counted(self, wanted: frozenset[str]) -> int:
        """Pictures that copy one of these."""
        return sum(bool(found & wanted) for found in self.copies)

    @property
    def shown(self) -> frozenset[str]:
        """Training pictures that any of them copies."""
        return frozenset().union(*self.copies)


class Trial:
    """Draws and judges texts as a run does. prompt_id: whose noise every picture begins with.

    prompt: the text of it. line: the middle of what calibration prompts score at the first tier.
    """

    def __init__(self, root: Path, prompt_id: str) -> None:
        """Raises UserError for a prompt that the run does not hold, a run that is not done so far or of another
        version, and where model or index are not those of the run."""
        run = RunFolder.open(root)
        made_by = older.maker(run)
        if made_by is not None:
            raise UserError(f"{root}: made by {made_by}, which alone can try its prompts further")
        if not run.table(BANDS).current():
            raise UserError(f"{root}: has no line of a copy yet; let the run finish first")
        config = run.config()
        self._tier = tiers(config.scores)[0]
        self.prompt, self.line = _prompt(run, prompt_id), _line(run, self._tier.number, self._tier.deciding)
        require_same(run, config)
        self._denoiser, self._search, self._bands = run_model(run, config), run_search(run, config), run_bands(run)
        self._config, self._generator, self._prompt_id = config, Generator.of(config, self._denoiser), prompt_id
        self._known, self._subspaces = load_unconditional(run, config), load_subspaces(run)

    @property
    def config(self) -> AuditConfig:
        """The run's."""
        return self._config

    @property
    def index(self) -> ReferenceIndex:
        """The run's."""
        return self._search.index

    def draw(self, text: str, numbers: Sequence[int]) -> Drawn:
        """Its pictures from these noises. Raises UserError for one that does not fit the memory, which says nothing of
        the text; one that is not finite copies nothing."""
        made = self._generator.pictures([text] * len(numbers), [(self._prompt_id, i) for i in numbers])
        if any(one is Status.OUT_OF_MEMORY for one in made):
            raise UserError(f'"{printable(text)}": {Status.OUT_OF_MEMORY.describe()} Give a device with more memory.')
        shown = [None if isinstance(one, Status) else one for one in made]
        return Drawn(made, [self._copied(near) for near in self._search.nearest(shown, NEIGHBOURS)])

    def _copied(self, near: Outcome) -> frozenset[str]:
        found = [] if isinstance(near, Status) else near
        banded = ((one.reference_id, band_of(one.similarity, self._bands, one.verified)) for one in found)
        return frozenset(name for name, band in banded if band == COPY)

    def scores(self, texts: Sequence[str]) -> list[float]:
        """By the metric that decides at the first tier; infinite where there is none: nothing speaks against it."""
        if not texts:
            return []
        only = replace(self._tier, metrics=self._tier.metrics[:1])
        settings = screen_config(self._config)
        (found,) = screen_tiers(self._denoiser, texts, self._known, self._subspaces, settings, [only], {})
        values = [math.nan if isinstance(one, Status) else one.mean(only.deciding) for one in found]
        return [math.inf if math.isnan(value) else value for value in values]


def _line(run: RunFolder, tier: int, metric: str) -> float:
    sql = (
        "SELECT value FROM scores JOIN corpus USING (prompt_id) "
        "WHERE role = 'calibration' AND tier = $tier AND metric = $metric AND value IS NOT NULL"
    )
    with open_connection(run) as connection:
        values = [value for (value,) in connection.sql(sql, params={"tier": tier, "metric": metric}).fetchall()]
    if not values:
        raise UserError(f"{run.root}: no calibration prompt has a score; let the run finish first")
    return float(median(values))


def _prompt(run: RunFolder, prompt_id: str) -> str:
    with open_connection(run) as connection:
        found = connection.sql("SELECT prompt FROM corpus WHERE prompt_id = $id", params={"id": prompt_id}).fetchall()
    if not found:
        raise UserError(f"{printable(prompt_id)}: the run holds no such prompt; take an id from findings.csv")
    return str(found[0][0])
