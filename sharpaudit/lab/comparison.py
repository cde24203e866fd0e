"""An audit of a lab's prompts held against the truth: what it found, what it missed, what it flagged for nothing.

The audit never sees truth.csv; this reads both. Intervals are Clopper and Pearson's at 95%, prompts taken as
independent: in a lab's splits every prompt is a family of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpaudit.errors import UserError
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.statistics.intervals import clopper_pearson

AUDITED = """
    select c.prompt, coalesce(t.flagged, false) as flagged, coalesce(t.selected_for = 'control', false) as control,
           f.best_reference_id as shown{extent}
    from triage t join corpus c using (prompt_id) left join findings f using (prompt_id){corroborated}
    where t.role = 'audit' order by c.prompt"""

KINDS = (("exact", "exact plants"), ("template", "template plants"))
LABELS = (("memorised", "memorised"), ("partly", "partly memorised"), ("harmless", "not memorised"))
HARMLESS = "harmless, never planted"
UNPLANTED = ("other-", "seen-")
"""How ids of training pictures begin that were not planted."""
FALSE_FLAGS = f"{HARMLESS}: flagged"
RIGHT = "findings that show a planted picture"
OWN_PLANTS = "findings that show their own plant"
EXTENTS = {"exact": ("the whole", "whole"), "template": ("a part", "part")}
"""What a copy of each kind of plant is of: in words, and as the view `corroborated` says it."""
GOALS = {"exact plants, memorised: found by the flags": 0.8, RIGHT: 0.95}
"""A finding is right that shows a planted picture, its own or another's: a caption never planted that shows what
was is a finding, and the kind that matters most. How many show their own is told, and no goal."""


def audited_by(views: Collection[str]) -> str:
    """The select of audited prompts. views: that the run has; an earlier one tells nothing of where a copy is."""
    there = "corroborated" in views
    joined = " left join corroborated k using (prompt_id)" if there else ""
    return AUDITED.format(extent=", k.extent" if there else "", corroborated=joined)


@dataclass(frozen=True)
class Audited:
    """An audited prompt. shown: the training picture of its best copy, None where it is no finding. extent: whether
    that is a copy of the whole or of a part, where it is known."""

    prompt: str
    flagged: bool
    control: bool
    shown: str | None
    extent: str | None = None


def compare(folder: Path, audited: Sequence[Audited]) -> list[dict[str, Any]]:
    """One line per figure (k of n, share, interval), then one per finding that does not show its own plant.

    folder: the lab's. Every audited prompt belongs to one group. What the flags found and what the controls added stand
    apart, and copies are counted of what was generated: of a harmless prompt that was not, it is unknown whether it
    would have become a finding. Raises UserError where an audited prompt is none of the lab's.
    """
    truth = {row.prompt: row for row in read_truth(folder)}
    strangers = [row.prompt for row in audited if row.prompt not in truth]
    if strangers:
        raise UserError(f'"{strangers[0]}": not in {folder}/truth.csv; compare a run over the prompts of this lab')
    both = [(truth[row.prompt], row) for row in audited]
    lines = []
    for name in _groups():
        lines += _figures(name, [row for known, row in both if _group(known) == name])
    found = [(known, row) for known, row in both if row.shown is not None]
    lines.append(_figure(RIGHT, [shows_planted(row) for _, row in found]))
    lines.append(_figure(OWN_PLANTS, [shows_own(known, row) for known, row in found]))
    for kind, extent in EXTENTS.items():
        own = [row.extent for known, row in found if known.kind == kind and shows_own(known, row) and row.extent]
        lines.append(
            _figure(f"copies of {dict(KINDS)[kind]} told as of {extent[0]}", [told == extent[1] for told in own])
        )
    exceptions = [
        {"prompt": row.prompt, "kind": known.kind, "label": known.label, "flagged": row.flagged, "shown": row.shown}
        for known, row in found
        if not shows_own(known, row)
    ]
    return [*lines, *exceptions]


def _groups() -> list[str]:
    planted = [f"{kind}, {label}" for _, kind in KINDS for _, label in LABELS]
    return [*planted, "neighbours", HARMLESS]


def _group(known: Truth) -> str:
    """The group of a prompt: its plant and what became of it, or that it copies others' plants, or neither."""
    if known.label == "neighbour":
        return "neighbours"
    return HARMLESS if known.never_planted else f"{dict(KINDS)[known.kind]}, {dict(LABELS)[known.label]}"


def _figures(name: str, group: Sequence[Audited]) -> list[dict[str, Any]]:
    """Of a group: flagged, found by the flags, and of those flagged and those drawn as controls the ones with a copy.

    Flags find only what there is to find, so harmless prompts have no second line.
    """
    flagged, controls = [row for row in group if row.flagged], [row for row in group if row.control]
    lines = [_figure(f"{name}: flagged", [row.flagged for row in group])]
    if name != HARMLESS:
        lines.append(_figure(f"{name}: found by the flags", [row.flagged and row.shown is not None for row in group]))
    lines.append(_figure(f"{name}: flagged, with a copy", [row.shown is not None for row in flagged]))
    lines.append(_figure(f"{name}: controls, with a copy", [row.shown is not None for row in controls]))
    return lines


def unmet(lines: Sequence[Mapping[str, Any]], alpha: float) -> list[str]:
    """What an audit of the lab that ships must show and these lines of `compare` do not, in words.

    alpha: the false-positive rate that its flags were to have.
    """
    told = {line["figure"]: line for line in lines if "figure" in line}
    failed = [
        f"{name}: {told[name]['k']} of {told[name]['n']}, at least {share:.0%} were to be"
        for name, share in GOALS.items()
        if told[name]["n"] == 0 or told[name]["k"] < share * told[name]["n"]
    ]
    flagged = told[FALSE_FLAGS]
    if not flagged["low"] <= alpha <= flagged["high"]:
        failed.append(f"{FALSE_FLAGS}: {flagged['low']:.2%} to {flagged['high']:.2%}, which was to contain {alpha:.2%}")
    return failed


def is_planted(reference_id: str) -> bool:
    """Whether a training picture of a lab was planted, by its id: whether it is none of those that were shown once."""
    return not reference_id.startswith(UNPLANTED)


def shows_planted(row: Audited) -> bool:
    """Whether the training picture of a finding's best copy was planted, under whatever prompt."""
    return row.shown is not None and is_planted(row.shown)


def shows_own(known: Truth, row: Audited) -> bool:
    """Whether the training picture of a finding's best copy was planted under the prompt itself."""
    name, shown = known.family.replace("/", "-"), row.shown or ""
    # The copies of a template are numbered at the end.
    return shown == f"planted-{name}" if known.kind == "exact" else shown.rpartition("-")[0] == f"template-{name}"


def _figure(name: str, hits: Sequence[bool]) -> dict[str, Any]:
    k, n = sum(hits), len(hits)
    interval = clopper_pearson(k, n)
    line: dict[str, Any] = {"figure": name, "k": k, "n": n, "share": round(k / n, 4) if n else None}
    return line | {"low": round(interval.low, 4), "high": round(interval.high, 4)}
