"""Which prompt of the lab goes to which split: dealt out in one mix, and no prompt for both purposes of a split.

A prompt that any lab ever had in *fit* or *development*, where choices are made, is never in *calibration* or *test*,
which tell what the choices are worth: fitted.txt keeps the names of their families.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

from pipelines.research.lab.labels import Judged
from sharpaudit.errors import UserError
from sharpaudit.seeds import rank_hash

SIZES = {"fit": 1000, "calibration": 999, "development": 500, "test": 1000}
"""Harmless prompts of each split."""
IN_DEVELOPMENT = {"exact": 62, "template": 7}
"""Memorised prompts of each kind that go to development; the rest go to test."""
TELLING = ("calibration", "test")
NAMES = "fitted.txt"


def fitted() -> frozenset[str]:
    """The families that a fit or development split of a lab ever held."""
    return frozenset((files("pipelines.research.lab") / NAMES).read_text(encoding="utf-8").split())


def split(
    judged: Sequence[Judged],
    sizes: Mapping[str, int],
    in_development: Mapping[str, int],
    seed: int,
    barred: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """The split of each caption: fit, calibration, development, test or spare.

    sizes: harmless prompts of each split. barred: families that no telling split may hold. Never-planted prompts are
    dealt out before their labels count, so that another label moves no other prompt. A neighbour is replaced by a spare
    harmless prompt of its kind; those dealt to development and test stay there beside it, as frequent as among all
    never-planted prompts, those dealt to fit and calibration become spare. `in_development` memorised prompts of each
    kind and a fifth of the other planted ones go to development, the rest of them to test. Each split gets the same mix
    of kinds, styles and colours. Raises UserError where there are too few.
    """
    never = [entry for entry in judged if not entry.prompt.planted]
    memorised = {
        kind: [e for e in judged if (e.label, e.prompt.kind) == ("memorised", kind)] for kind in in_development
    }
    rest = [entry for entry in judged if entry.prompt.planted and entry.label != "memorised"]
    _refuse_few(never, sizes, memorised, in_development)
    dealt = _deal(never, {**sizes, "spare": len(never) - sum(sizes.values())}, seed, barred)
    dealt |= _replaced(never, dealt, sizes, seed, barred)
    for kind, entries in memorised.items():
        n = in_development[kind]
        dealt |= _deal(entries, {"development": n, "test": len(entries) - n}, seed, barred)
    return dealt | _deal(rest, {"development": len(rest) // 5, "test": len(rest) - len(rest) // 5}, seed, barred)


def _refuse_few(
    never: Sequence[Judged],
    sizes: Mapping[str, int],
    memorised: Mapping[str, Sequence[Judged]],
    in_development: Mapping[str, int],
) -> None:
    n_harmless = sum(entry.label == "harmless" for entry in never)
    if n_harmless >= sum(sizes.values()) and all(len(memorised[kind]) >= n for kind, n in in_development.items()):
        return
    wanted = ", ".join(f"{n:,} {name}" for name, n in sizes.items())
    told = " and ".join(f"{len(entries):,} {kind} plants" for kind, entries in memorised.items())
    planted = " and ".join(f"{n:,} {kind}" for kind, n in in_development.items())
    raise UserError(
        f"{n_harmless:,} prompts are harmless; {told} are memorised: too few for splits of {wanted} and {planted} "
        "plants in development; train the model for longer"
    )


def _replaced(
    never: Sequence[Judged], dealt: Mapping[str, str], sizes: Mapping[str, int], seed: int, barred: frozenset[str]
) -> dict[str, str]:
    """Where prompts move so that every split has its number of harmless ones, and fit and calibration no others."""
    moved: dict[str, str] = {}
    spare = [entry for entry in never if entry.label == "harmless" and dealt[entry.prompt.caption] == "spare"]
    spare.sort(key=lambda entry: rank_hash(seed, "spare", entry.prompt.caption))
    others = [entry for entry in never if entry.label != "harmless" and dealt[entry.prompt.caption] in sizes]
    for entry in sorted(others, key=lambda entry: rank_hash(seed, "other", entry.prompt.caption)):
        name = dealt[entry.prompt.caption]
        if name not in ("development", "test"):
            moved[entry.prompt.caption] = "spare"
        allowed = [other for other in spare if _may(other, name, barred)]
        if not allowed:
            raise UserError(f"no spare harmless prompt is left for the {name} split; plan more harmless prompts")
        # One of the same kind where there is one.
        chosen = min(allowed, key=lambda other: _mix(other) != _mix(entry))
        spare.remove(chosen)
        moved[chosen.prompt.caption] = name
    return moved


def _may(entry: Judged, name: str, barred: frozenset[str]) -> bool:
    return name not in TELLING or entry.prompt.family.name not in barred


def _mix(entry: Judged) -> tuple[str, bool, str]:
    """What every split holds in one proportion."""
    return entry.prompt.kind, bool(entry.prompt.family.colour), entry.prompt.family.style


def _deal(entries: Sequence[Judged], sizes: Mapping[str, int], seed: int, barred: frozenset[str]) -> dict[str, str]:
    """Deal entries, sorted by group, to splits so that any run of them is divided in proportion.

    A barred one in a telling split changes places with one that may be there, of its mix if there is one; where nobody
    may, it goes to development.
    """

    def key(entry: Judged) -> tuple[str, bool, str, int, str]:
        return *_mix(entry), entry.prompt.copies, rank_hash(seed, "split", entry.prompt.caption)

    total, given = len(entries), dict.fromkeys(sizes, 0)
    found = {}
    for i, entry in enumerate(sorted(entries, key=key)):
        # Whoever lags most behind its share of the i + 1 dealt so far.
        name = max(sizes, key=lambda s: sizes[s] * (i + 1) / total - given[s])
        given[name] += 1
        found[entry.prompt.caption] = name
    return found | _exchanged(sorted(entries, key=key), found, barred)


def _exchanged(entries: Iterable[Judged], dealt: Mapping[str, str], barred: frozenset[str]) -> dict[str, str]:
    """Where prompts move so that no telling split holds a barred one."""
    entries = list(entries)
    free = [e for e in entries if e.prompt.family.name not in barred and dealt[e.prompt.caption] not in TELLING]
    moved: dict[str, str] = {}
    for entry in entries:
        name = dealt[entry.prompt.caption]
        if _may(entry, name, barred):
            continue
        if not free:
            moved[entry.prompt.caption] = "development"
            continue
        partner = min(free, key=lambda other: sum(a != b for a, b in zip(_mix(other), _mix(entry), strict=True)))
        free.remove(partner)
        moved[entry.prompt.caption], moved[partner.prompt.caption] = dealt[partner.prompt.caption], name
    return moved
