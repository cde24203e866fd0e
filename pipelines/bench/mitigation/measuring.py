"""What is drawn, in which order, and from which split a choice comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.bench.mitigation.choice import chosen, tried_further
from pipelines.bench.mitigation.drawing import CONTROLS, KINDS, MANY, PICTURES, SIZES, Bench
from pipelines.bench.mitigation.settings import CONTROL, Rung, Setting, rungs
from sharpaudit.errors import UserError


@dataclass(frozen=True)
class Attacked:
    """A chosen strength behind an attack. setting: its MANY pictures before. prompts: of those that it suppresses,
    which pictures copy the target then. controls: the same of harmless prompts and pictures that were shown once. Of a
    prompt that had a picture which could not be looked at there is nothing."""

    setting: Setting
    prompts: Mapping[str, Sequence[bool]]
    controls: Mapping[str, Sequence[bool]]

    @property
    def recovered(self) -> int:
        """Prompts of which a picture copies again."""
        return sum(map(any, self.prompts.values()))

    @property
    def controls_copied(self) -> int:
        """Controls of which a picture copies: where there are some, an attack tells nothing of a memory."""
        return sum(map(any, self.controls.values()))


@dataclass(frozen=True)
class Measured:
    """settings: of the split that is told, the control first. best: the strength of each method that the development
    split chose. more: on a test split these with MANY pictures, the control first; attacked: behind attacks."""

    settings: Sequence[Setting]
    best: Mapping[str, int]
    more: Sequence[Setting] = ()
    attacked: Sequence[Attacked] = ()


def measure(bench: Bench, methods: Sequence[str], split: str, few: int | None, tell: Callable[[str], None]) -> Measured:
    """Choose on the development split and measure on `split`, development or test.

    few: of every kind so many prompts at most. tell: is given a line for each setting. Raises UserError where there is
    nothing to measure.
    """
    if not methods:
        raise UserError("no method is left that this model can be steered by; name another by --method")

    def told(rung: Rung, of: str, pictures: int, kinds: Sequence[str] = tuple(KINDS)) -> Setting:
        sizes = {kind: min(size, few or size) * (kind in kinds) for kind, size in SIZES[of].items()}
        setting = bench.setting(rung, bench.prompts(of, sizes), pictures)
        tell(f"{of}: {rung.name} {rung.setting}: {len(setting.copied())} copy")
        return setting

    drawn = {(rung.name, rung.strength): rung for rung in (CONTROL, *rungs(methods))}
    developed = [told(rung, "development", PICTURES) for rung in drawn.values()]
    choice = chosen(developed)
    best = {name: setting.strength for name, setting in choice.items()}
    if split == "development":
        return Measured(developed, best)
    found = [told(CONTROL, "test", PICTURES)]
    if not found[0].copied() or not found[0].of("harmless"):
        raise UserError("the test split needs exactly memorised prompts that copy, and harmless ones beside them")
    found += [told(rung, "test", PICTURES) for rung in drawn.values() if rung is not CONTROL]
    tried = [CONTROL, *(drawn[one.method, one.strength] for one in tried_further(choice))]
    more = [told(rung, "test", MANY, ("exact",)) for rung in tried]
    if bench.unattackable is not None:
        tell(bench.unattackable)
        return Measured(found, best, more)
    return Measured(found, best, more, _attacked(bench, tried, more))


def _attacked(bench: Bench, tried: Sequence[Rung], more: Sequence[Setting]) -> list[Attacked]:
    targets, controls = more[0].copied(), bench.controls("test", CONTROLS)
    found = []
    for rung, one in zip(tried, more, strict=True):
        # Without a method every prompt that copies is attacked: what the attack does by itself.
        own = targets.keys() if rung is CONTROL else one.suppressed(more[0])
        towards = {prompt: row for prompt, row in targets.items() if prompt in own}
        found.append(Attacked(one, bench.attacked(rung, towards), bench.attacked(rung, controls)))
    return found
