"""The bands of a match, learned from samples that should match nothing.

Band samples are generated from harmless prompts and compared with the same index. A match in band `copy` is more
similar than all of them, but for a few prompts that are set aside and named: that a fit prompt is harmless is believed,
not known, and a single memorised one would lift the line above most copies. `near` begins at a quantile of theirs; the
rest is `none`. No threshold is typed in or copied from a paper.

How often a harmless prompt has a sample in `copy` is bounded by `false_match_bound`: the chance of exceeding the
(e + 1)-th largest of n independent draws is Beta(e + 1, n - e) distributed (Wilks, Annals of Mathematical Statistics
12, 1941), so with confidence `level` it is at most the upper Clopper-Pearson bound of e in n; its mean is
`false_match_rate`. A draw is the best of all samples of a prompt, whose samples are not independent. So both are rates
of prompts with as many samples as the band prompts had, and of no others: of prompts with more samples more exceed. n
counts the band prompts that have all of theirs; another one can only raise the line.

With two instruments a copy lies above the line of each, learned from what each saw of the same pairs. Whoever is above
both is above the first, so that the rate and bound of one line hold for both together; how far below them the true rate
is depends on how much the instruments agree, and is not claimed.

Shapes: P pairs of a sample and a training picture, N band prompts, I instruments, 1 or 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sharpaudit.errors import UserError
from sharpaudit.statistics.intervals import upper_bound

Band = Literal["copy", "near", "none"]
COPY: Band = "copy"


PROMPTS_PER_EXCEPTION = 50
"""Fewer band prompts than this are all believed."""
UNLIKE = -1.0
"""What the second instrument is taken to see of a sample that it cannot describe: the least that a cosine can be."""


@dataclass(frozen=True)
class Bands:
    """copy: similarity > copy_above and, with a second instrument, verified > verified_above. near: similarity >=
    near_above. n_samples, n_prompts: behind both. n_exceptions: band prompts that are left out.
    """

    copy_above: float
    near_above: float
    n_samples: int
    n_prompts: int
    n_exceptions: int
    verified_above: float | None = None


@dataclass(frozen=True)
class Pair:
    """A band sample and a training picture: similar by the instrument that found it, and by the one that verifies it,
    None where there is none or it cannot describe the sample. The pairs of a sample are its nearest, best first."""

    prompt: str
    sample: str
    similarity: float
    verified: float | None = None


def learn_bands(pairs: Sequence[Pair], near_quantile: float, exceptions: int = 0, *, verifying: bool = False) -> Bands:
    """The bands from the pairs of the band samples; the quantile, of each sample's best, is one of the values.

    exceptions: how many prompts may lie above the lines of a copy, the most similar ones; at most one for every 50 band
    prompts. verifying: whether there is a second instrument.
    """
    best: dict[str, float] = {}
    for pair in pairs:
        best[pair.sample] = max(pair.similarity, best.get(pair.sample, pair.similarity))
    if not best:
        raise UserError(
            "no band sample has a descriptor, so no match can be told from chance; "
            "give more fit prompts, or a larger samples.band_prompts"
        )
    values = np.array(list(best.values()), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a band sample's similarity is NaN or infinite")
    prompts = [pair.prompt for pair in pairs]
    seen_PI = seen(pairs, verifying)
    n_prompts = len(set(prompts))
    allowed = min(exceptions, granted(n_prompts))
    lines = copy_lines(seen_PI, prompts)[allowed].tolist()
    near_above = min(lines[0], float(np.quantile(values, near_quantile, method="higher")))
    return Bands(lines[0], near_above, int(values.size), n_prompts, allowed, *lines[1:])


def seen(pairs: Sequence[Pair], verifying: bool) -> npt.NDArray[np.float64]:
    """What the instruments saw of each pair, (P, I)."""
    found = [[pair.similarity, UNLIKE if pair.verified is None else pair.verified] for pair in pairs]
    return np.array(found, dtype=np.float64).reshape(-1, 2)[:, : 2 if verifying else 1]


def granted(n_prompts: int) -> int:
    """How many of so many band prompts may lie above the copy line."""
    return n_prompts // PROMPTS_PER_EXCEPTION


def copy_lines(seen_PI: npt.NDArray[np.float64], prompts: Sequence[str]) -> npt.NDArray[np.float64]:
    """The lines above which `copy` begins at 0, 1, ... exceptions, one for each instrument: (N, I), falling.

    Each is what an instrument saw at most of the prompt that is the first not to be excepted. seen_PI: see `seen`.
    prompts: of each pair.
    """
    names, of_P = np.unique(np.asarray(prompts), return_inverse=True)
    best_NI = np.full((len(names), seen_PI.shape[1]), -np.inf)
    np.maximum.at(best_NI, of_P, seen_PI)
    return np.sort(best_NI, axis=0)[::-1]


def band_of(similarity: float, bands: Bands, verified: float | None = None) -> Band:
    """The band of a match. verified: what the second instrument saw of it, None where it cannot describe the sample."""
    if not math.isfinite(similarity):
        raise ValueError(f"similarity is {similarity}")
    also = bands.verified_above is None or (verified is not None and verified > bands.verified_above)
    if similarity > bands.copy_above and also:
        return COPY
    return "near" if similarity >= bands.near_above else "none"


def false_match_bound(n: int, exceptions: int = 0, level: float = 0.95) -> float:
    """The largest rate at which a harmless prompt has a sample in `copy`, at confidence `level`; 1 when n is 0."""
    if n < 0 or not 0 < level < 1:
        raise ValueError(f"n = {n}, level = {level}: n is at least 0 and level lies between 0 and 1")
    return upper_bound(min(exceptions, n), n, level) if n else 1.0


def false_match_rate(n: int, exceptions: int = 0) -> float:
    """The mean of that rate over draws of n band prompts: the chance that the next one is above the line."""
    return min(1.0, (exceptions + 1) / (n + 1))
