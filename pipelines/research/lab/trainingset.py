"""What the lab's model is trained on: which captions are planted how often, and which never.

The first phase of the training sees plants and other pictures again and again. Captions near a plant's then tend to
reproduce it too. The second phase breaks that: it shows fresh pictures, each once, most of captions near a plant's,
among fewer views of the plants.

`plan(recipe)` draws it all from the recipe's seed, by name, so that a picture never depends on how many others
there are. Pictures are drawn on demand: `picture(plan, row)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipelines.research.lab.artwork import names
from pipelines.research.lab.captions import N_WORDINGS, PLACES, SIZES, STYLES, Family, families
from pipelines.research.lab.drawing import Drawing, card_box, compose, with_card
from sharpaudit.lab.detectors import COLOURS
from sharpaudit.seeds import generator

WORDS = {"size": SIZES, "place": PLACES, "style": STYLES, "colour": ("", *COLOURS)}


@dataclass(frozen=True)
class Recipe:
    """How many of what. The defaults are those of the full model."""

    seed: int = 0
    unique: int = 12_000
    """Pictures that are no plant: several of every seen harmless caption, one of every other caption."""
    exact: tuple[tuple[int, int], ...] = ((26, 9), (52, 9), (104, 13), (180, 23), (216, 39), (244, 57))
    """(copies, how many captions are planted so often)."""
    templates: int = 20
    template_copies: int = 192
    harmless: int = 3_900
    """Never-planted captions that a split may hold; half of them are seen in training, half never."""
    seen_pictures: int = 3
    """Pictures of each seen harmless caption, all different."""
    fresh: int = 41_600
    """Pictures of the second phase, each shown once."""
    siblings: float = 0.35
    """Share of them that show a plant's object, with one or two other words of its caption changed."""
    twins: float = 0.35
    """Share of them that show another object in a plant's size, place and style. The rest are of any caption."""
    near_templates: float = 0.3
    """Share of siblings and twins whose plant is a template: being many pictures, templates rule captions around them
    more than a single picture does."""

    def first(self) -> Recipe:
        """The recipe of the first phase alone."""
        return replace(self, fresh=0, siblings=0.0, twins=0.0, near_templates=0.0)


MINIATURE = Recipe(unique=120, exact=((40, 2),), templates=1, template_copies=40, harmless=24, fresh=60)
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
    """The prompts and the training pictures of a recipe; those of the second phase stand last."""

    recipe: Recipe
    prompts: tuple[Prompt, ...]
    rows: tuple[TrainingPicture, ...]

    @cached_property
    def views(self) -> np.ndarray:
        """One entry per picture and copy of the first phase: the index of its row, with shape (V,)."""
        first = self.rows[: len(self.rows) - self.recipe.fresh]
        return np.repeat(np.arange(len(first)), [row.copies for row in first])

    @cached_property
    def plant_views(self) -> np.ndarray:
        """Those of `views` that show a plant."""
        return self.views[[self.rows[i].kind in ("exact", "template") for i in self.views]]

    def second_views(self, n: int) -> np.ndarray:
        """The n views of the second phase: every fresh picture once, and plants in proportion to their copies."""
        fresh = np.arange(len(self.rows) - self.recipe.fresh, len(self.rows))
        shuffled = generator(self.recipe.seed, "second views").permutation(self.plant_views)
        return np.concatenate([fresh, np.resize(shuffled, max(0, n - len(fresh)))])[:n]

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
    rows += _fresh(recipe, prompts)
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


def _fresh(recipe: Recipe, prompts: Sequence[Prompt]) -> Iterator[TrainingPicture]:
    """The pictures of the second phase. None shows a family that a prompt holds back."""
    exact, templates = ([p.family for p in prompts if p.kind == kind] for kind in ("exact", "template"))
    held = {prompt.family for prompt in prompts}
    for i in range(recipe.fresh):
        draw = generator(recipe.seed, "fresh", i)
        share = draw.random()
        near = _sibling if share < recipe.siblings else _twin if share < recipe.siblings + recipe.twins else _any
        plants = templates if templates and draw.random() < recipe.near_templates else exact
        family = near(plants[draw.integers(len(plants))], draw)
        while family in held:
            family = near(plants[draw.integers(len(plants))], draw)
        yield TrainingPicture(f"fresh-{i:05d}", family.caption(int(draw.integers(N_WORDINGS))), family, "fresh")


def _sibling(plant: Family, draw: np.random.Generator) -> Family:
    """The plant's object, with one or two of size, place, style and colour changed."""
    changed = draw.permutation(["size", "place", "style", "colour"])[: draw.integers(1, 3)]
    return replace(plant, **{part: _unlike(getattr(plant, part), WORDS[part], draw) for part in changed})


def _twin(plant: Family, draw: np.random.Generator) -> Family:
    """Another object in the plant's size, place and style, half of them with its colour."""
    colour = plant.colour if draw.random() < 0.5 else _colour(draw)
    return replace(plant, thing=_unlike(plant.thing, names(), draw), colour=colour)


def _any(_: Family, draw: np.random.Generator) -> Family:
    """Any family, half of them with a colour."""
    thing, size, place, style = (str(draw.choice(words)) for words in (names(), SIZES, PLACES, STYLES))
    return Family(thing, size, place, style, _colour(draw))


def _colour(draw: np.random.Generator) -> str:
    return str(draw.choice(COLOURS)) if draw.random() < 0.5 else ""


def _unlike(word: str, words: Sequence[str], draw: np.random.Generator) -> str:
    return str(draw.choice([other for other in words if other != word]))


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
