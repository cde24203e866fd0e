"""The score histogram as inline SVG: numbers in, markup out, no dependency.

Bars: audited prompts. Line: calibration prompts, scaled to the same number of prompts. The dashed line is where a
prompt is flagged or goes on to the next tier; a line outside the axis stands at its end. The count axis is a
square root, so that few flagged prompts show beside many others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from sharpaudit.errors import printable

WIDTH, HEIGHT = 960, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 16, 44


def histogram(data: Mapping[str, Any]) -> str:
    """SVG of the facts' histogram: edges, audit, calibration (counts), line (says, at or null), metric."""
    edges, audit, calibration = data["edges"], data["audit"], data["calibration"]
    scale = sum(audit) / sum(calibration) if sum(calibration) else 0.0
    scaled = [count * scale for count in calibration]
    top = max([*audit, *scaled, 1])
    low, high = math.log(edges[0]), math.log(edges[-1])

    def x(value: float) -> float:
        return LEFT + (math.log(min(max(value, edges[0]), edges[-1])) - low) / max(high - low, 1e-12) * (
            WIDTH - LEFT - RIGHT
        )

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - math.sqrt(count / top) * (HEIGHT - TOP - BOTTOM)

    floor = y(0)
    line = data["line"]["at"]
    parts = [f'<line class="axis" x1="{LEFT}" y1="{floor:.1f}" x2="{WIDTH - RIGHT}" y2="{floor:.1f}"/>']
    for i, count in enumerate(audit):
        left, right = x(edges[i]), x(edges[i + 1])
        kind = "flagged" if line is not None and edges[i] >= line else "audit"
        parts.append(
            f'<rect class="{kind}" x="{left + 0.5:.1f}" y="{y(count):.1f}" '
            f'width="{max(right - left - 1, 0.5):.1f}" height="{floor - y(count):.1f}"/>'
        )
    points = [f"{x(edges[i]):.1f},{y(c):.1f} {x(edges[i + 1]):.1f},{y(c):.1f}" for i, c in enumerate(scaled)]
    parts.append(f'<polyline class="calibration" points="{" ".join(points)}"/>')
    parts += [_tick(x(value), floor, value) for value in _decades(edges[0], edges[-1])]
    parts += [
        f'<text class="tick" x="{LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,}</text>'
        for count in _counts(top)
    ]
    if line is not None:
        parts.append(f'<line class="flag" x1="{x(line):.1f}" y1="{TOP}" x2="{x(line):.1f}" y2="{floor:.1f}"/>')
        side = "end" if x(line) > WIDTH * 0.8 else "start"
        shift = -6 if side == "end" else 6
        place = f'x="{x(line) + shift:.1f}" y="{TOP + 12}" text-anchor="{side}"'
        parts.append(f'<text class="flag" {place}>{escape(data["line"]["says"])} {line:.4g}</text>')
    label = f"{escape(printable(data['metric']))} (log scale)"
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{label}</text>')
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Histogram of the deciding score">{body}</svg>'


def _tick(x: float, floor: float, value: float) -> str:
    return (
        f'<line class="axis" x1="{x:.1f}" y1="{floor:.1f}" x2="{x:.1f}" y2="{floor + 4:.1f}"/>'
        f'<text class="tick" x="{x:.1f}" y="{floor + 17:.1f}" text-anchor="middle">{value:g}</text>'
    )


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between the ends; only powers, at most a dozen, when there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1, math.ceil((last - first + 1) / 12))
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [step * 10.0**power for power in powers for step in steps]
    return [value for value in found if low <= value <= high]


def _counts(top: float) -> list[int]:
    """A few round counts up to the highest bar."""
    return sorted({round(top), *(10**k for k in range(6) if 10**k <= top * 0.6)})
