"""How a training picture lies in a generated one, if it is there: mirrored or not, at what scale, and where.

Windows of the generated picture that have texture are looked for in the training picture, mirrored or not, at several
scales, by normalised correlation of grey (Lewis, Vision Interface 1995). Windows that agree on one displacement vote
for it, which is a Hough transform of a mirroring, a scale and a shift; windows that agree by chance do not add up. The
windows of the best displacement then give scale and shift by least squares. Turned or sheared pictures are not looked
for.

Pictures are compared small, their shorter sides equal, as training scales pictures.

Shapes: H W height and width, C channels, K pixels of a window, N windows.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from sharpaudit.images import Pixels

SIDES = (24, 64)
"""Shorter side at which pictures are compared, in pixels: that of the generated one, but at least and at most."""
MAX_ASPECT = 3.0
"""Longer over shorter side; of a longer training picture the middle is looked for."""
WINDOW, STRIDE = 12, 6
"""Side of a window that is looked for, and from one to the next, in pixels."""
TEXTURE = 8.0
"""Standard deviation within a window, in levels of 255, above which it has texture."""
VOTES = 0.6
"""Correlation from which on a window votes."""
NEAR = 3
"""Pixels by which a window may lie beside the displacement that it votes for."""
SCALES = (0.71, 0.84, 1.0, 1.19, 1.41)
"""Size of the training picture within the generated one, beside that of equal shorter sides; between them the windows
bear what is left, and the fit reaches from .60 to 1.66."""


class Alignment(NamedTuple):
    """How a training picture lies in a generated one: mirrored or not, its scale, and where its left upper corner is,
    in shorter sides of the generated picture. Scale 1: the shorter sides are equal."""

    mirrored: bool
    scale: float
    left: float
    top: float


def alignments(generated_CHW: torch.Tensor, training_HWC: Pixels) -> list[Alignment | None]:
    """The one for which most windows vote, as the windows fit it and as it was looked for; None if none votes.

    generated: as `small` gives it. training: (H, W, 3), uint8.
    """
    windows_NK, places_N2 = _windows(_grey(generated_CHW))
    if not len(windows_NK):
        return [None]
    side = min(generated_CHW.shape[1:])
    found = []
    for mirrored, scale in product((False, True), SCALES):
        map_NHW = _correlation(windows_NK, _grey(_looked_at(training_HWC, mirrored, scale * side)))
        found.append((*_voted(map_NHW, places_N2), mirrored, scale, map_NHW))
    votes, at, mirrored, scale, map_NHW = max(found, key=lambda one: one[0])
    if not votes:
        return [None]
    plain = Alignment(mirrored, scale, -at[1] / side, -at[0] / side)
    return [_fitted(map_NHW, places_N2, at, plain, side), plain]


def small(picture_HWC: Pixels) -> torch.Tensor:
    """A generated picture as it is compared, (3, H, W) in levels of 255."""
    least, most = SIDES
    return _scaled(picture_HWC, min(most, max(least, min(picture_HWC.shape[:2]))))


def laid(training_HWC: Pixels, alignment: Alignment | None, frame_CHW: torch.Tensor) -> torch.Tensor:
    """The training picture where the alignment puts it, as large as the frame (3, H, W), NaN beside it."""
    if alignment is None:
        return torch.full_like(frame_CHW, torch.nan)
    side = min(frame_CHW.shape[1:])
    picture_CHW = _looked_at(training_HWC, alignment.mirrored, alignment.scale * side)
    height, width = picture_CHW.shape[1:]
    rows = torch.arange(frame_CHW.shape[1]) - alignment.top * side
    columns = torch.arange(frame_CHW.shape[2]) - alignment.left * side
    y, x = (2 * (rows + 0.5) / height - 1), (2 * (columns + 0.5) / width - 1)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).float()
    found = functional.grid_sample(picture_CHW[None], grid[None], padding_mode="border", align_corners=False)[0]
    found[:, (y.abs() > 1)[:, None] | (x.abs() > 1)[None, :]] = torch.nan
    return found


def means(picture_CHW: torch.Tensor, side: int = WINDOW) -> torch.Tensor:
    """Mean of the window at each place, (C, H', W'): by sums of all that lies above and left of a place."""
    summed = functional.pad(picture_CHW.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    rows = summed[:, side:] - summed[:, :-side]
    return ((rows[:, :, side:] - rows[:, :, :-side]) / side**2).float()


def variance(picture_CHW: torch.Tensor, side: int = WINDOW) -> torch.Tensor:
    """Variance within the window at each place, each channel about its own mean there, mean of the channels."""
    return (means(picture_CHW.square(), side) - means(picture_CHW, side).square()).clamp(min=0).mean(0)


def _looked_at(training_HWC: Pixels, mirrored: bool, shorter: float) -> torch.Tensor:
    height, width = training_HWC.shape[:2]
    longest = int(MAX_ASPECT * min(height, width))
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    picture_CHW = _scaled(training_HWC[top : top + longest, left : left + longest], shorter)
    return picture_CHW.flip(-1) if mirrored else picture_CHW


def _scaled(picture_HWC: Pixels, shorter: float) -> torch.Tensor:
    factor = shorter / min(picture_HWC.shape[:2])
    size = [max(WINDOW, round(length * factor)) for length in picture_HWC.shape[:2]]
    tensor = torch.tensor(np.ascontiguousarray(picture_HWC)).permute(2, 0, 1).float()[None]
    return functional.interpolate(tensor, size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _grey(picture_CHW: torch.Tensor) -> torch.Tensor:
    return picture_CHW.mean(0, keepdim=True)


def _windows(picture_CHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows of a grey picture that have texture, without their means and of length 1, (N, K), and where their
    upper left corners are, (N, 2)."""
    cut_NK = functional.unfold(picture_CHW[None], WINDOW, stride=STRIDE)[0].T
    rows, columns = (torch.arange(0, length - WINDOW + 1, STRIDE) for length in picture_CHW.shape[1:])
    cut_NK = cut_NK - cut_NK.mean(1, keepdim=True)
    lengths_N = cut_NK.norm(dim=1)
    kept_N = lengths_N / WINDOW > TEXTURE
    return cut_NK[kept_N] / lengths_N[kept_N, None], torch.cartesian_prod(rows, columns)[kept_N]


def _correlation(windows_NK: torch.Tensor, picture_CHW: torch.Tensor) -> torch.Tensor:
    """Normalised correlation of each window at each place of a grey picture, (N, H', W')."""
    # One product of matrices, which is much quicker here than a convolution of one channel.
    around_KP = functional.unfold(picture_CHW[None], WINDOW)[0]
    height, width = (length - WINDOW + 1 for length in picture_CHW.shape[1:])
    # A window of one tone is like nothing.
    lengths_P = variance(picture_CHW).sqrt().flatten().clamp(min=1.0) * WINDOW
    return (windows_NK @ around_KP / lengths_P).reshape(-1, height, width)


def _voted(map_NHW: torch.Tensor, places_N2: torch.Tensor) -> tuple[float, tuple[int, int]]:
    """The most votes of a displacement, and that displacement: from a place of a window to where it is found."""
    height, width = map_NHW.shape[1:]
    down, right = places_N2.amax(0).tolist()
    votes = torch.zeros(height + down, width + right)
    for found_HW, (row, column) in zip((map_NHW - VOTES).clamp(min=0), places_N2.tolist(), strict=True):
        votes[down - row : down - row + height, right - column : right - column + width] += found_HW
    # Those beside a displacement count for it too: between two scales windows lie a little apart.
    votes = functional.avg_pool2d(votes[None], 3, 1, 1)[0]
    row, column = divmod(int(votes.argmax()), votes.shape[1])
    return float(votes[row, column]), (row - down, column - right)


def _fitted(
    map_NHW: torch.Tensor, places_N2: torch.Tensor, at: tuple[int, int], plain: Alignment, side: int
) -> Alignment:
    """Scale and shift by least squares from the windows that agree, each at its best place near the displacement."""
    height, width = map_NHW.shape[1:]
    # Padded, so that every place has NEAR on each side.
    padded = functional.pad(map_NHW, (NEAR, NEAR, NEAR, NEAR), value=-1.0)
    from_, to = [], []
    for found_HW, place in zip(padded, places_N2.tolist(), strict=True):
        row, column = place[0] + at[0], place[1] + at[1]
        if not (0 <= row < height and 0 <= column < width):
            continue
        cut = found_HW[row : row + 2 * NEAR + 1, column : column + 2 * NEAR + 1]
        if float(cut.max()) >= VOTES:
            down, right = divmod(int(cut.argmax()), 2 * NEAR + 1)
            from_.append(place)
            to.append([row + down - NEAR, column + right - NEAR])
    if not from_:
        return plain
    a, b = (np.array(points, dtype=np.float64) + WINDOW / 2 for points in (from_, to))
    # A place p of the generated picture is grown * p + shift in the training picture as it was looked at.
    grown, shift = _similarity(a, b, side)
    top, left = (-shift / grown / side).tolist()
    return Alignment(plain.mirrored, plain.scale / grown, left, top)


def _similarity(
    a_N2: npt.NDArray[np.float64], b_N2: npt.NDArray[np.float64], side: int
) -> tuple[float, npt.NDArray[np.float64]]:
    """The scale and shift that take a to b, by least squares; scale 1 where the points are too near each other."""
    spread = ((a_N2 - a_N2.mean(0)) ** 2).sum()
    covariance = ((a_N2 - a_N2.mean(0)) * (b_N2 - b_N2.mean(0))).sum()
    grown = float(np.clip(covariance / spread, 0.85, 1.18)) if len(a_N2) > 2 and spread > side**2 / 8 else 1.0
    return grown, b_N2.mean(0) - grown * a_N2.mean(0)
