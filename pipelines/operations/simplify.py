"""Simplify: the simplest text that still makes a run's model copy what one of its prompts copies.

Every candidate is drawn from the noise of the prompt's own pictures, so that the words alone differ. It copies where a
picture lies above the run's lines with one of the training pictures that the whole prompt copies. Before anything is
drawn the screen scores it, at its first tier: candidates are tried from the highest score, and one below the middle of
the calibration prompts is left out, since harmless prompts mostly stand there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.operations import older
from pipelines.operations.replay import require_same
from pipelines.operations.strips import in_rows
from pipelines.stages.bands import run_bands
from pipelines.stages.fit import load_subspaces, load_unconditional, screen_config
from pipelines.stages.inputs import run_model, run_search
from pipelines.stages.search import Neighbour, Outcome
from sharpaudit.config import AuditConfig
from sharpaudit.corpus.dedup import normal_text
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import Pixels
from sharpaudit.matches.decide import COPY, band_of
from sharpaudit.matches.index import ReferenceIndex
from sharpaudit.matches.simplest import Words, simplest
from sharpaudit.samples.generate import Generator
from sharpaudit.scores.cascade import screen_tiers, tiers
from sharpaudit.statistics.intervals import clopper_pearson
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RunFolder

EXAMPLES = 3
"""Captions that are told."""


@dataclass
class Drawn:
    """Pictures of a text, from the first noise on. copies: of each, which training pictures it copies; None where the
    picture could not be looked at."""

    pictures: list[Pixels | Status] = field(default_factory=list)
    copies: list[frozenset[str] | None] = field(default_factory=list)

    def counted(self, wanted: frozenset[str]) -> int:
        """Pictures that copy one of these."""
        return sum(bool(found and found & wanted) for found in self.copies)

    @property
    def examined(self) -> int:
        """Pictures that could be looked at."""
        return sum(found is not None for found in self.copies)


@dataclass(frozen=True)
class Captions:
    """Training captions of an index. same: that are the text but for case, punctuation and space; containing: in which
    it stands, those among them; examples: some of both."""

    total: int
    same: int
    containing: int
    examples: list[str]


@dataclass(frozen=True)
class Simplified:
    """wanted: training pictures that the prompt copies. left_out: candidates that the screen kept from being drawn.
    whole: whether no single word can go; False where the bound on candidates ended the search."""

    prompt: str
    text: str
    wanted: frozenset[str]
    before: Drawn
    after: Drawn
    tried: int
    left_out: int
    whole: bool
    captions: Captions


class Trial:
    """Draws and judges texts as a run does. prompt_id: whose noise every picture begins with."""

    def __init__(self, run: RunFolder, config: AuditConfig, prompt_id: str) -> None:
        self._denoiser, self._search, self._bands = run_model(run, config), run_search(run, config), run_bands(run)
        self._config, self._generator, self._prompt_id = config, Generator.of(config, self._denoiser), prompt_id
        self._known, self._subspaces = load_unconditional(run, config), load_subspaces(run)
        self._tier = tiers(config.scores)[0]
        self.line = _line(run, self._tier.number, self._tier.deciding)

    @property
    def index(self) -> ReferenceIndex:
        """The run's."""
        return self._search.index

    def draw(self, text: str, drawn: Drawn, n: int) -> None:
        """Go on to n pictures."""
        noises = [(self._prompt_id, i) for i in range(len(drawn.pictures), n)]
        made = self._generator.pictures([text] * len(noises), noises)
        shown = [None if isinstance(one, Status) else one for one in made]
        drawn.pictures += made
        drawn.copies += [self._copied(near) for near in self._search.nearest(shown, self._config.matches.neighbours)]

    def _copied(self, near: Outcome) -> frozenset[str] | None:
        def copied(one: Neighbour) -> bool:
            return band_of(one.similarity, self._bands, one.verified) == COPY

        return None if isinstance(near, Status) else frozenset(one.reference_id for one in near if copied(one))

    def scores(self, texts: Sequence[str]) -> list[float]:
        """By the metric that decides at the first tier; NaN where there is none."""
        settings, only = screen_config(self._config), [self._tier]
        (found,) = screen_tiers(self._denoiser, texts, self._known, self._subspaces, settings, only, {})
        return [float("nan") if isinstance(one, Status) else one.mean(self._tier.deciding) for one in found]


def _line(run: RunFolder, tier: int, metric: str) -> float:
    """The middle of what calibration prompts score there. Raises UserError where none has a score."""
    sql = (
        "SELECT value FROM scores JOIN corpus USING (prompt_id) "
        "WHERE role = 'calibration' AND tier = $tier AND metric = $metric AND value IS NOT NULL"
    )
    with open_connection(run) as connection:
        values = [value for (value,) in connection.sql(sql, params={"tier": tier, "metric": metric}).fetchall()]
    if not values:
        raise UserError(f"{run.root}: no calibration prompt has a score yet; let the run finish first")
    return float(median(values))


class _Candidates:
    """Which of some candidates copies, at what was tried so far. most: candidates that may be drawn."""

    def __init__(self, trial: Trial, wanted: frozenset[str], pictures: int, most: int) -> None:
        self._trial, self._wanted, self._pictures, self._most = trial, wanted, pictures, most
        self._copies: dict[Words, bool] = {}
        self.drawn: dict[Words, Drawn] = {}
        self.left_out, self.whole = 0, True

    def first(self, candidates: list[Words]) -> Words | None:
        """The one with the highest score that copies; None where none does, or no more may be drawn."""
        known = [words for words in candidates if self._copies.get(words)]
        if known:
            return known[0]
        for words in self._in_order([words for words in dict.fromkeys(candidates) if words not in self._copies]):
            if len(self.drawn) >= self._most:
                self.whole = False
                return None
            self._copies[words] = self._copies_one(words)
            if self._copies[words]:
                return words
        return None

    def _in_order(self, new: list[Words]) -> list[Words]:
        """From the highest score; those that the screen leaves out do not copy."""
        scores = dict(zip(new, self._trial.scores([" ".join(words) for words in new]), strict=True)) if new else {}
        # A text without a score is drawn: nothing speaks against it.
        low = [words for words in new if scores[words] < self._trial.line]
        self._copies |= dict.fromkeys(low, False)
        self.left_out += len(low)
        return sorted((words for words in new if words not in low), key=lambda words: -scores[words])

    def _copies_one(self, words: Words) -> bool:
        drawn = self.drawn[words] = Drawn()
        self._trial.draw(" ".join(words), drawn, self._pictures)
        return drawn.counted(self._wanted) > 0


def simplify(root: Path, prompt_id: str, pictures: int | None, counted: int, most: int) -> Simplified:
    """Search, and draw `counted` pictures of the prompt and of what is left of it.

    pictures: of a candidate; as many as the run makes of a prompt where None. most: candidates that are drawn. Raises
    UserError for a prompt that the run does not hold or of which no picture copies, and where model or index are not
    those of the run.
    """
    run = RunFolder.open(root)
    config = run.config()
    require_same(run, config)
    made_by = older.maker(run)
    if made_by is not None:
        raise UserError(f"{root}: made by {made_by}, which alone can try its prompts further")
    prompt = _prompt(run, prompt_id)
    trial, n, before = Trial(run, config, prompt_id), pictures or config.samples.per_prompt, Drawn()
    trial.draw(prompt, before, n)
    wanted = frozenset().union(*(found for found in before.copies if found))
    if not wanted:
        raise UserError(f"{printable(prompt_id)}: none of its first {n} pictures is a copy; take a finding of the run")
    candidates = _Candidates(trial, wanted, n, most)
    left = simplest(prompt.split(), candidates.first)
    text = " ".join(left)
    after = candidates.drawn.get(left, before if text == prompt else Drawn())
    for each, drawn in ((prompt, before), (text, after)):
        trial.draw(each, drawn, max(counted, n))
    return Simplified(
        prompt,
        text,
        wanted,
        before,
        after,
        len(candidates.drawn),
        candidates.left_out,
        candidates.whole,
        captions(trial.index, text),
    )


def _prompt(run: RunFolder, prompt_id: str) -> str:
    with open_connection(run) as connection:
        rows: list[Any] = connection.sql(
            "SELECT prompt FROM corpus WHERE prompt_id = $id", params={"id": prompt_id}
        ).fetchall()
    if not rows:
        raise UserError(f"{printable(prompt_id)}: the run holds no such prompt; take an id from findings.csv")
    return str(rows[0][0])


def captions(index: ReferenceIndex, text: str) -> Captions:
    """Where a text stands among the captions of an index, by whole words; case and punctuation do not count."""
    wanted, total, same, containing = f" {normal_text(text)} ", 0, 0, list[str]()
    for caption in _captions(index):
        total += 1
        normal = f" {normal_text(caption)} "
        if wanted in normal:
            same += wanted == normal
            containing.append(caption)
    examples = list(dict.fromkeys(sorted(containing, key=len)))[:EXAMPLES]
    return Captions(total, same, len(containing), examples)


def _captions(index: ReferenceIndex) -> Iterator[str]:
    """Of its references, in their order; those that have none are left out."""
    for table in index.tables:
        with index.unchanged():
            for group in range(table.metadata.num_row_groups):
                held = table.read_row_group(group, columns=["caption"])["caption"]
                yield from filter(None, held.to_pylist())


def told(found: Simplified) -> dict[str, Any]:
    """What was found, for JSON; rates with 95% intervals over noises."""

    def one(text: str, drawn: Drawn) -> dict[str, Any]:
        copies, n = drawn.counted(found.wanted), drawn.examined
        bounds = clopper_pearson(copies, n)
        counted = {"copies": copies, "pictures": n, "low": bounds.low, "high": bounds.high}
        return {"text": text, "words": len(text.split())} | counted

    return {
        "prompt": one(found.prompt, found.before),
        "simplest": one(found.text, found.after),
        "minimal": found.whole,
        "training_pictures": sorted(found.wanted),
        "candidates_drawn": found.tried,
        "left_out_by_the_screen": found.left_out,
        "captions": asdict(found.captions),
    }


def strip(found: Simplified) -> Pixels:
    """Pictures with all words above those with what is left, of one noise each; only of noises that gave both."""
    pairs = zip(found.before.pictures, found.after.pictures, strict=True)
    both = [(a, b) for a, b in pairs if not isinstance(a, Status) and not isinstance(b, Status)]
    return in_rows([[a for a, _ in both], [b for _, b in both]])
