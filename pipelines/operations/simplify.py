"""Simplify: the simplest text that still makes a run's model copy what one of its prompts copies.

Every candidate is drawn from the noise of the prompt's own pictures, so that the words alone differ. It copies where a
picture lies above the run's lines with one of the training pictures that the whole prompt copies there. Before anything
is drawn the screen scores it, at its first tier: candidates are tried from the highest score, and one below the middle
of the calibration prompts is put off. Those put off that are one word shorter than what is left are drawn in the end,
so that no word stays for the screen's sake.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.operations.captions import Captions, standing
from pipelines.operations.strips import in_rows
from pipelines.operations.trial import Drawn, Trial
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import Pixels
from sharpaudit.matches.simplest import Words, simplest, without_one
from sharpaudit.statistics.intervals import clopper_pearson


@dataclass(frozen=True)
class Simplified:
    """wanted: training pictures that the prompt copies. tries: pictures of a candidate. before, after: pictures of the
    prompt and of the text from noise that decided nothing. tried: candidates that were drawn; put_off: that the screen
    kept from it. whole: whether the text without each single word was drawn and did not copy."""

    prompt: str
    text: str
    wanted: frozenset[str]
    tries: int
    before: Drawn
    after: Drawn
    tried: int
    put_off: int
    whole: bool
    captions: Captions


class _Candidates:
    """Which of some candidates copies. most: candidates that may be drawn; whole: whether none was left for that."""

    def __init__(self, trial: Trial, wanted: frozenset[str], pictures: int, most: int) -> None:
        self._trial, self._wanted, self._numbers, self._most = trial, wanted, range(pictures), most
        self._failed: set[Words] = set()
        self._low: set[Words] = set()
        self.tried, self.whole = 0, True

    @property
    def put_off(self) -> int:
        """Candidates that the screen kept from being drawn."""
        return len(self._low)

    def first(self, candidates: list[Words], *, screened: bool = True) -> Words | None:
        """The one with the highest score that copies; None where none does, or no more may be drawn."""
        new = [words for words in dict.fromkeys(candidates) if words not in self._failed]
        new = [words for words in new if not (screened and words in self._low)] if self.whole else []
        scored = sorted(zip(self._trial.scores([" ".join(words) for words in new]), new, strict=True), reverse=True)
        for score, words in scored:
            if screened and score < self._trial.line:
                self._low.add(words)
            elif self.tried >= self._most:
                self.whole = False
                return None
            elif self._copies(words):
                return words
        return None

    def _copies(self, words: Words) -> bool:
        self.tried += 1
        self._low.discard(words)
        copies = self._trial.draw(" ".join(words), self._numbers).counted(self._wanted) > 0
        if not copies:
            self._failed.add(words)
        return copies

    def simplest(self, words: Words) -> Words:
        """What is left of words that copy."""
        left = simplest(words, self.first)
        while (shorter := self.first(without_one(left), screened=False)) is not None:
            left = simplest(shorter, self.first)
        return left


def simplify(root: Path, prompt_id: str, pictures: int | None, counted: int, most: int) -> Simplified:
    """Search, and draw `counted` further pictures of the prompt and of what is left of it.

    pictures: of a candidate; as many as the run makes of a prompt where None. most: candidates that are drawn. Raises
    UserError for a prompt of which no picture copies, and as Trial does.
    """
    trial = Trial(root, prompt_id)
    n = pictures or trial.config.samples.per_prompt
    wanted = trial.draw(trial.prompt, range(n)).shown
    if not wanted:
        raise UserError(
            f"{printable(prompt_id)}: none of its first {n} pictures is a copy; take a finding of the run, and "
            "--pictures large enough for the one that is its copy"
        )
    candidates, words = _Candidates(trial, wanted, n, most), tuple(trial.prompt.split())
    left = candidates.simplest(words)
    # White space of its own is a prompt's text as much as its words are.
    text = trial.prompt if left == words else " ".join(left)
    before, after = (trial.draw(one, range(n, n + counted)) for one in (trial.prompt, text))
    told = candidates.tried, candidates.put_off, candidates.whole
    return Simplified(trial.prompt, text, wanted, n, before, after, *told, standing(trial.index, text))


def told(found: Simplified) -> dict[str, Any]:
    """What was found, for JSON; rates with 95% intervals over noises."""

    def one(text: str, drawn: Drawn) -> dict[str, Any]:
        copies, n = drawn.counted(found.wanted), len(drawn.copies)
        bounds, shown = clopper_pearson(copies, n), sorted(drawn.shown & found.wanted)
        counted = {"copies": copies, "pictures": n, "low": bounds.low, "high": bounds.high}
        return {"text": text, "words": len(text.split())} | counted | {"training_pictures": shown}

    return {
        "prompt": one(found.prompt, found.before),
        "simplest": one(found.text, found.after),
        "minimal": found.whole,
        "training_pictures": sorted(found.wanted),
        "pictures_of_a_candidate": found.tries,
        "candidates_drawn": found.tried,
        "put_off_by_the_screen": found.put_off,
        "captions": asdict(found.captions),
    }


def strip(found: Simplified) -> Pixels:
    """Pictures of the prompt above those of what is left, of the same noise. Raises UserError where none gave both."""
    pairs = zip(found.before.pictures, found.after.pictures, strict=True)
    both = [(a, b) for a, b in pairs if not isinstance(a, Status) and not isinstance(b, Status)]
    if not both:
        raise UserError("no noise gave a picture of both texts: there is nothing to show side by side")
    return in_rows([[a for a, _ in both], [b for _, b in both]])
