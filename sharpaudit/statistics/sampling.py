"""Stratified sampling: how many to draw from each stratum."""

from __future__ import annotations

from collections.abc import Sequence


def allocate(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` draws shared evenly over strata of the given sizes.

    No stratum gives more than it holds; what it cannot give goes to the others. Earlier strata take what does not
    divide, and a larger total never takes a draw away from a stratum.
    """
    if total < 0 or any(size < 0 for size in sizes):
        raise ValueError(f"cannot draw {total} from strata of {list(sizes)}: counts are not negative")
    given = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left:
        room = [i for i, size in enumerate(sizes) if given[i] < size]
        step = max(1, min(left // len(room), *(sizes[i] - given[i] for i in room)))
        for i in room:
            take = min(step, left)
            given[i] += take
            left -= take
    return given
