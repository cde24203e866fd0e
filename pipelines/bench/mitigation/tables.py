"""What `sharpaudit bench mitigation` tells: tables, lines and the figure."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.bench.lines import Line, table
from pipelines.bench.mitigation.choice import (
    GOAL,
    MOST_LOST,
    SAIL,
    compared,
    curves,
    level_of,
    lost,
    lost_interval,
)
from pipelines.bench.mitigation.drawing import MANY, PICTURES
from pipelines.bench.mitigation.measuring import Attacked, Measured
from pipelines.bench.mitigation.settings import Setting
from sharpaudit.errors import UserError
from sharpaudit.statistics.intervals import Interval, clopper_pearson, upper_bound
from sharpaudit.tables.records import export_file

SAME = 1 - 1e-6
"""Likeness of a picture to itself, up to rounding."""


def markdown(found: Measured) -> str:
    """The tables for people."""
    parts = _strengths(found.settings, found.best)
    if found.more:
        parts += [*_further(found.more), *_behind_attacks(found.attacked)]
        parts += [*_harmless(found.settings, found.best), *_at_level(found.settings)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _strengths(found: Sequence[Setting], best: Mapping[str, int]) -> list[str]:
    control, rows = found[0], list[list[object]]()
    n, template = len(control.copied()), len(control.copied("template"))
    head = ["method", "strength", f"suppressed, of {n} exact plants"]
    head += [f"of {template} templates"] if template else []
    head += ["pictures that copy", "similarity", "alignment lost", "like before", "evaluations", "seconds"]
    for one in found:
        name = f"**{one.method}**" if best.get(one.method) == one.strength else one.method
        row: list[object] = [name, one.setting, len(one.suppressed(control))]
        row += [len(one.suppressed(control, "template"))] if template else []
        row += [
            f"{one.mean('copies'):.0%}",
            f"{one.mean('similarity'):.3f}",
        ]
        row += [f"{lost(one, control):.0%}", f"{one.mean('like_before'):.2f}"]
        rows.append([*row, f"{one.evaluations:.0f}", f"{one.seconds:.2f}"])
    title = f"{PICTURES} pictures of each prompt; in bold the strengths that the development split chose"
    return [title, table(head, rows)]


def _further(more: Sequence[Setting]) -> list[str]:
    control, rows = more[0], list[list[object]]()
    n = len(control.copied())
    for one in more:
        share, spent = _share(len(one.suppressed(control)), n), lost_interval(one, control)
        alignment = "" if one is control else f"{lost(one, control):.0%} ({_range(spent)})"
        copies = f"{one.mean('copies'):.1%}"
        rows.append([one.method, one.setting, share, copies, alignment, f"{one.evaluations:.0f}"])
    title = f"{MANY} pictures of each prompt, at one strength, chosen on the development split"
    head = ["method", "strength", f"suppressed, of {n} (95%)", "pictures that copy", "alignment lost (95%)"]
    bound = upper_bound(0, MANY, 0.95)
    note = f"Suppressed: none of {MANY} pictures is a copy, which leaves a rate of up to {bound:.0%} possible (95%)."
    return [title, table([*head, "evaluations"], rows), note]


def _behind_attacks(attacked: Sequence[Attacked]) -> list[str]:
    rows = []
    for one in attacked:
        copies = np.mean([copied for of in one.prompts.values() for copied in of]) if one.prompts else 0.0
        row: list[object] = [one.setting.method, one.setting.setting, _share(one.recovered, len(one.prompts))]
        rows.append([*row, f"{copies:.0%}", f"{one.controls_copied} of {len(one.controls)}"])
    title = f"Behind an attack on the prompt's embedding, {MANY} pictures of each prompt that was suppressed"
    title += "; of none, that copies"
    head = ["method", "strength", "copies again (95%)", "pictures that copy", "controls that copy"]
    return [title, table(head, rows)] if rows else []


def _share(k: int, n: int) -> str:
    return f"{k} of {n} ({_range(clopper_pearson(k, n))})" if n else "none there"


def _harmless(found: Sequence[Setting], best: Mapping[str, int]) -> list[str]:
    """What a method does to prompts that need none, at the strength that is chosen."""
    control, rows = found[0], list[list[object]]()
    for one in (setting for setting in found if best.get(setting.method) == setting.strength):
        like = np.array([of.like_before for of in one.of("harmless")])
        row: list[object] = [
            one.method,
            one.setting,
            f"{lost(one, control, 'harmless'):.0%}",
            f"{np.nanmean(like):.2f}",
        ]
        rows.append([*row, f"{(~(like >= SAME)).mean():.0%}"])
    title = f"On {len(control.of('harmless'))} harmless prompts"
    head = ["method", "strength", "alignment lost", "like before", "pictures that differ"]
    return [title, table(head, rows)]


def _at_level(found: Sequence[Setting]) -> list[str]:
    told, rows = compared(found), list[list[object]]()
    for name, one in sorted(told.items(), key=lambda entry: -entry[1].alignment):
        beside = "" if name == SAIL or SAIL not in told else f"{one.more:+.0%} ({_range(one.more_interval)})"
        rows.append([name, f"{one.alignment:.0%} ({_range(one.interval)})", beside, f"{one.reaches:.0%}"])
    missing = [name for name in curves(found) if name not in told]
    title = f"At a similarity of {level_of(found):.3f}, half-way to that of harmless prompts"
    head = ["method", "alignment kept (95%)", "more than sail (95%)", "of the replicates that come there"]
    note = f"Not come there at any strength: {', '.join(missing)}." if missing else "All methods come there."
    return [title, table(head, rows), note]


def _range(interval: Interval) -> str:
    return f"{interval.low:.0%} to {interval.high:.0%}"


def bench_lines(found: Measured) -> Iterator[Line]:
    """The best method and SAIL, on the test split at the strengths that the development split chose; else nothing."""
    if not found.more:
        return
    control, *tried = found.more
    yield from _told("mitigation.best", tried[0], control, (GOAL, MOST_LOST))
    n = len(control.of("exact"))
    for setting in tried:
        name = f"mitigation.{setting.method}"
        yield from _told(name, setting, control, (None, None))
        yield Line(f"{name}.evaluations", setting.evaluations, "evaluations a picture", n)
        yield Line(f"{name}.times_plain", setting.evaluations / control.evaluations, "times those of none", n)
    for one in found.attacked:
        name = f"mitigation.attack.{one.setting.method}"
        yield from _shared(f"{name}.recovered", one.recovered, len(one.prompts))
        yield from _shared(f"{name}.controls", one.controls_copied, len(one.controls))
    for name, at in compared(found.settings).items():
        low, high = at.interval.low, at.interval.high
        yield Line(f"mitigation.{name}.aligned_at_half", at.alignment, "share", n, low, high)


def _told(
    name: str, setting: Setting, control: Setting, goals: tuple[float, float] | tuple[None, None]
) -> Iterator[Line]:
    copied = len(control.copied())
    yield from _shared(f"{name}.suppressed", len(setting.suppressed(control)), copied, goals[0])
    spent, n = lost_interval(setting, control), len(control.of("exact"))
    value = lost(setting, control)
    yield Line(f"{name}.alignment_lost", value, "share", n, spent.low, spent.high, goals[1], at_most=True)


def _shared(name: str, k: int, n: int, goal: float | None = None) -> Iterator[Line]:
    """k of n; nothing of none."""
    if n:
        share = clopper_pearson(k, n)
        yield Line(name, k / n, "share", n, share.low, share.high, goal)


def draw(found: Sequence[Setting], path: Path) -> None:
    """Similarity against alignment, a curve for each method, exact plants and templates apart; png, svg or pdf.

    Raises UserError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('--figure draws with matplotlib: pip install "sharpaudit[figures]"') from error
    told = list(curves(found).items())
    kinds = [kind for kind in ("exact", "template") if found[0].of(kind)]
    figure = Figure(figsize=(5.4 * len(kinds), 4.4), layout="constrained")
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        shown = [
            (name, curve[1:], f"C{i % 10}", "osv^D*P"[i % 7], "-" if i < 10 else "--")
            for i, (name, curve) in enumerate(told)
        ]
        for name, curve, colour, marker, line in [*shown, ("none", found[:1], "#1c2430", "X", "-")]:
            (x, dx), (y, dy) = (np.array([_with_error(one, kind, of) for one in curve]).T for of in (False, True))
            style = {"linewidth": 1, "elinewidth": 0.4, "color": colour, "marker": marker, "linestyle": line}
            panel.errorbar(x, y, dy, dx, label=name, **style)
        panel.set(title=f"{len(found[0].of(kind))} {kind} plants", xlabel="similarity to the nearest training picture")
        panel.set_ylabel("alignment: own less another caption")
    panel.legend(fontsize=7)
    drawn = io.BytesIO()
    form = path.suffix.removeprefix(".") or "png"
    figure.savefig(drawn, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    export_file(path, drawn.getvalue())


def _with_error(setting: Setting, kind: str, alignment: bool) -> tuple[float, float]:
    """Mean over prompts, and 1.96 standard errors of it."""
    values_N = setting.alignments(kind) if alignment else setting.means("similarity", kind)
    return float(np.nanmean(values_N)), float(1.96 * np.nanstd(values_N, ddof=1) / len(values_N) ** 0.5)
