"""Pictures side by side, for people to compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sharpaudit.images import Pixels

GAP = 4
"""White pixels between pictures."""


def in_rows(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    """Pictures of one size on white, row below row."""
    height, width = rows[0][0].shape[:2]
    made = np.full((len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            made[top : top + height, left : left + width] = picture
    return made
