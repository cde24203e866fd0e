"""Memory runs short: batches shrink, a hopeless row is named, all others are the same as ever."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.batching import in_batches
from sharpaudit.errors import Status


class Device:
    """Squares numbers; a batch whose sizes sum to more than `memory` does not fit."""

    def __init__(self, memory, size=lambda row: 1):
        self.memory, self.size, self.calls, self.failed = memory, size, [], []

    def __call__(self, rows):
        self.calls.append(len(rows))
        if sum(map(self.size, rows)) > self.memory:
            self.failed.append(len(rows))
            raise torch.OutOfMemoryError
        return [row * row for row in rows]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 50))
def test_results_are_those_of_enough_memory(n, batch_size, memory):
    device = Device(memory)
    assert in_batches(device, range(n), batch_size) == [row * row for row in range(n)]
    assert len(device.failed) <= 6  # halved each time, and never tried again
    assert max(device.calls, default=0) <= batch_size


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 19)), st.integers(1, 25))
def test_only_a_row_that_does_not_fit_alone_is_given_up(large, batch_size):
    device = Device(5, lambda row: 9 if row in large else 1)
    expected = [Status.OUT_OF_MEMORY if row in large else row * row for row in range(20)]
    assert in_batches(device, range(20), batch_size) == expected
    assert len([size for size in device.failed if size > 1]) <= 5


def test_rows_come_in_order_and_in_full_batches():
    seen = []
    in_batches(lambda rows: seen.append(rows) or rows, range(7), 3)
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


def test_other_errors_are_not_swallowed():
    def broken(rows):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        in_batches(broken, [1, 2], 2)


def test_a_call_that_loses_rows_is_a_bug():
    with pytest.raises(ValueError, match="2 rows gave 1"):
        in_batches(lambda rows: rows[:1], [1, 2], 2)


def test_a_batch_holds_at_least_one_row():
    with pytest.raises(ValueError, match="batch_size is 0"):
        in_batches(list, [1], 0)


def test_the_failed_batch_is_freed_before_the_next():
    """Its tensors hang on the exception: while that lives, the device stays full."""
    import weakref

    alive, counts = weakref.WeakSet(), []

    def call(rows):
        counts.append(len(alive))
        held = torch.zeros(len(rows))
        alive.add(held)
        if len(rows) > 1:
            raise torch.OutOfMemoryError
        return list(rows)

    in_batches(call, range(4), 4)
    assert counts == [0] * len(counts)
