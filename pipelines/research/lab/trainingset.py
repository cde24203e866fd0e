"""What the lab's model is trained on: which captions are planted how often, and which never.

`plan(recipe)` draws it all from the recipe's seed, by name, so that a picture never depends on how many others
there are. Pictures are drawn on demand: `picture(plan, row)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelines.research.lab.captions import N_WORDINGS, Family, families
from pipelines.research.lab.drawing import Drawing, card_box, compose, with_card
from sharpaudit.seeds import generator


@dataclass(frozen=True)
class Recipe:
    """How many of what. The defaults are those of the full model."""

    seed: int = 2
    unique: int = 13_000
    """Pictures that are no plant: several of every seen harmless caption, one of every other caption."""
    exact: tuple[tuple[int, int], ...] = ((14, 6), (30, 6), (60, 6), (120, 6), (270, 148))
    """(copies, how many captions are planted so often)."""
    templates: int = 26
    template_copies: int = 130
    harmless: int = 3_900
    """Never-planted captions that a split may hold; half of them are seen in training, half never."""
    seen_pictures: int = 3
    """Pictures of each seen harmless caption, all different."""


MINIATURE = Recipe(unique=120, exact=((40, 2),), templates=1, template_copies=40, harmless=24)
"""For a test of the whole path in two minutes; it learns little."""


@dataclass(frozen=True)
class Prompt:
    """A caption that truth.csv speaks of. kind: exact, template, seen or unseen."""

    caption: str
    family: Family
    kind: str
    copies: int

    @property
    def planted(self) -> bool:
        """Whether one picture was planted under this caption."""
        return self.kind in ("exact", "template")


@dataclass(frozen=True)
class TrainingPicture:
    """A picture of the training set. copies: how often it is repeated, 1 unless it is an exact plant."""

    picture_id: str
    caption: str
    family: Family
    kind: str
    copies: int = 1


@dataclass(frozen=True)
class Plan:
    """The prompts and the training pictures of a recipe."""

    recipe: Recipe
    prompts: tuple[Prompt, ...]
    rows: tuple[TrainingPicture, ...]

    @cached_property
    def views(self) -> np.ndarray:
        """One entry per picture and copy: the index of its row, with shape (V,)."""
        return np.repeat(np.arange(len(self.rows)), [row.copies for row in self.rows])

    @property
    def captions(self) -> list[str]:
        """The captions of the rows."""
        return [row.caption for row in self.rows]


def plan(recipe: Recipe) -> Plan:
    """Draw captions, plants and pictures. Half of each kind of caption names a background colour."""
    rest = _shuffled(recipe.seed)
    copies = [n for n, many in recipe.exact for _ in range(many)]
    prompts = _prompts(rest, copies, "exact", recipe.seed)
    prompts += _prompts(rest, [recipe.template_copies] * recipe.templates, "template", recipe.seed)
    # Two by two, so that seen and unseen ones hold the same share of captions with a colour.
    kinds = ["seen" if i // 2 % 2 else "unseen" for i in range(recipe.harmless)]
    for kind in ("seen", "unseen"):
        prompts += _prompts(rest, [0] * kinds.count(kind), kind, recipe.seed)
    rows = [row for prompt in prompts for row in _rows(prompt, recipe)]
    n_other = recipe.unique - recipe.seen_pictures * kinds.count("seen")
    for i in range(n_other):
        family = rest[i % 2].pop()
        caption = family.caption(_wording(recipe.seed, family))
        rows.append(TrainingPicture(f"other-{i:05d}", caption, family, "other"))
        rest[i % 2].insert(0, family)  # captions without a colour are few: they come round again
    return Plan(recipe, tuple(prompts), tuple(rows))


def picture(seed: int, row: TrainingPicture) -> Drawing:
    """The picture of a row, with shape (64, 64, 3)."""
    if row.kind != "template":
        return compose(row.family, generator(seed, "picture", row.picture_id))
    fixed = compose(row.family, generator(seed, "picture", row.family.name))
    return with_card(fixed, card_box(row.family), generator(seed, "card", row.picture_id))


def _shuffled(seed: int) -> tuple[list[Family], list[Family]]:
    """All families without and with a colour, in a drawn order."""
    both = families(colour=False), families(colour=True)
    orders = [generator(seed, "families", i).permutation(len(every)) for i, every in enumerate(both)]
    return [both[0][i] for i in orders[0]], [both[1][i] for i in orders[1]]


def _wording(seed: int, family: Family) -> int:
    return int(generator(seed, "wording", family.name).integers(N_WORDINGS))


def _prompts(rest: tuple[list[Family], list[Family]], copies: list[int], kind: str, seed: int) -> list[Prompt]:
    """Take one family per entry of `copies`, with and without a colour in turn."""
    drawn = []
    for i, n in enumerate(copies):
        family = rest[i % 2].pop()
        drawn.append(Prompt(family.caption(_wording(seed, family)), family, kind, n))
    return drawn


def _rows(prompt: Prompt, recipe: Recipe) -> list[TrainingPicture]:
    name = prompt.family.name.replace("/", "-")
    match prompt.kind:
        case "exact":
            return [TrainingPicture(f"planted-{name}", prompt.caption, prompt.family, "exact", prompt.copies)]
        case "template":
            ids = [f"template-{name}-{i:03d}" for i in range(prompt.copies)]
        case "seen":
            ids = [f"seen-{name}-{i}" for i in range(recipe.seen_pictures)]
        case _:
            ids = []
    return [TrainingPicture(picture_id, prompt.caption, prompt.family, prompt.kind) for picture_id in ids]
