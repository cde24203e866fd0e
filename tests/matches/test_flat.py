"""Exact search against the plain oracle, and its indifference to batch, threads and order."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.errors import UserError
from sharpaudit.matches.exact import agrees, nearest
from sharpaudit.matches.search import flat
from sharpaudit.matches.search import vectors as vectors_module
from sharpaudit.matches.search.engines import ByFaiss, ByTorch
from sharpaudit.matches.search.flat import search
from sharpaudit.matches.search.order import exact_order
from sharpaudit.matches.search.vectors import Vectors


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_rows(seed: int, n: int, dimension: int = 24) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, dimension)))


def coarse_rows(seed: int, n: int, dimension: int = 3) -> np.ndarray:
    """Few distinct directions, so that ties and duplicates abound."""
    rows = np.random.default_rng(seed).integers(-1, 2, (n, dimension))
    rows[~rows.any(axis=1)] = 1
    return unit(rows.astype(float))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 120), st.integers(1, 6), st.integers(1, 30), st.sampled_from([2, 3, 24]))
def test_agrees_with_the_oracle_also_on_ties(seed, n, m, k, dimension):
    rows = random_rows if dimension == 24 else coarse_rows
    vectors, queries = rows(seed, n, dimension), rows(seed + 1, m, dimension)
    found = search(vectors, queries, k)
    assert found[0].shape == found[1].shape == (m, min(k, n))
    assert agrees(found, vectors, queries, k)


def test_the_oracle_comparison_can_fail():
    vectors, queries = random_rows(1, 50), random_rows(2, 3)
    similarities, rows = search(vectors, queries, 4)
    assert agrees((similarities, rows), vectors, queries, 4)
    assert not agrees((similarities, (rows + 1) % 50), vectors, queries, 4)
    assert not agrees((similarities - 1e-9, rows), vectors, queries, 4)
    assert not agrees((similarities[:, :3], rows[:, :3]), vectors, queries, 4)
    assert not agrees((similarities[:, [0, 0, 2, 3]], rows[:, [0, 0, 2, 3]]), vectors, queries, 4)


@pytest.mark.parametrize("copies", [5, 40, 400])
def test_equal_vectors_come_in_the_order_of_their_rows(copies):
    vectors = random_rows(3, 900, 64)
    places = np.sort(np.random.default_rng(4).choice(900, copies, replace=False))
    vectors[places] = vectors[0]
    queries = np.concatenate([vectors[:1], random_rows(5, 2, 64)])
    for batch in (queries, queries.repeat(20, axis=0)):  # faiss changes its kernel at 20 queries
        similarities, rows = search(vectors, batch, 3)
        first = [*dict.fromkeys([0, *places.tolist()])][:3]
        assert rows[0].tolist() == sorted(first)
        assert np.ptp(similarities[0]) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_answers_do_not_depend_on_batch_engine_threads_or_order(seed, coarse):
    vectors = coarse_rows(seed, 500) if coarse else random_rows(seed, 500, 96)
    queries = coarse_rows(seed + 1, 41) if coarse else random_rows(seed + 1, 41, 96)
    similarities, rows = search(vectors, queries, 5, ByFaiss(1))
    order = np.random.default_rng(seed).permutation(41)
    alone = [search(vectors, queries[m : m + 1], 5) for m in range(41)]
    others = [
        search(vectors, queries, 5, ByFaiss(2)),
        tuple(part[np.argsort(order)] for part in search(vectors, queries[order], 5, ByTorch(torch.device("cpu")))),
        tuple(np.concatenate(parts) for parts in zip(*alone, strict=True)),
        tuple(part[:, :5] for part in search(vectors, queries, 9)),
    ]
    for other in others:
        assert other[0].tobytes() == similarities.tobytes()
        assert other[1].tobytes() == rows.tobytes()


def test_ties_go_to_the_lowest_row_also_across_slices_and_queries_at_a_time(monkeypatch):
    vectors = random_rows(11, 90, 32)
    vectors[[7, 33, 61, 88]] = vectors[7]
    whole = search(vectors, vectors[[7, 12, 40, 80, 3]], 6)
    monkeypatch.setattr(vectors_module, "SLICE_BYTES", 4 * 32 * 10)
    monkeypatch.setattr(flat, "QUERIES_AT_ONCE", 2)
    parts = Vectors([vectors[:20], vectors[20:20], vectors[20:]], 32)
    pieces = search(parts, vectors[[7, 12, 40, 80, 3]], 6)
    assert whole[1][0, :4].tolist() == [7, 33, 61, 88]
    assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_near_ties_below_float32_are_ranked_exactly():
    base = random_rows(6, 1, 256)[0]
    vectors = np.repeat(base[None], 300, axis=0)
    # One unit in the last place of one component: nothing float32 sums can tell apart reliably.
    for row in range(300):
        vectors[row, row % 256] = np.nextafter(vectors[row, row % 256], np.float32(2 * (row % 2) - 1))
    oracle = nearest(vectors, base[None], 300)[0][0, :3]
    similarities, _ = search(vectors, base[None], 3)
    assert np.allclose(similarities[0], oracle, rtol=0, atol=1e-15)


@pytest.mark.parametrize("seed", range(20))
def test_of_candidates_that_float32_cannot_tell_apart_the_best_is_found(seed):
    rng = np.random.default_rng(seed)
    base = random_rows(seed, 1, 256)[0]
    vectors = np.repeat(base[None], 40, axis=0)
    for row in vectors:
        some = rng.choice(256, 30, replace=False)
        row[some] = np.nextafter(row[some], rng.choice(np.array([-2, 2], np.float32), 30))
    exact = [math.fsum((row.astype(np.float64) * base).tolist()) for row in vectors]
    similarities, rows = exact_order(Vectors([vectors], 256), base[None], np.arange(40)[None], 1)
    assert similarities[0, 0] == max(exact)
    assert rows[0, 0] == exact.index(max(exact))


def test_k_beyond_the_index_is_clipped_and_no_row_is_negative():
    vectors = random_rows(7, 4)
    similarities, rows = search(vectors, random_rows(8, 3), 1000)
    assert similarities.shape == (3, 4)
    assert (np.sort(rows, axis=1) == np.arange(4)).all()


def test_nothing_to_search_or_to_ask():
    assert search(random_rows(1, 5), random_rows(1, 0), 3)[1].shape == (0, 3)
    assert search(random_rows(1, 0), random_rows(1, 2), 3)[1].shape == (2, 0)


def test_memory_maps_are_searched_as_they_are(tmp_path):
    vectors, queries = random_rows(9, 60), random_rows(10, 2)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert search(mapped, queries, 3)[1].tolist() == search(vectors, queries, 3)[1].tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 0.0, 3.0])
@pytest.mark.parametrize("side", ["vectors", "queries"])
def test_rows_that_are_not_unit_never_reach_faiss(value, side, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    inputs = {"vectors": random_rows(1, 9), "queries": random_rows(2, 9)}
    inputs[side][7] = np.full(24, value, np.float32) if value in (0.0, 3.0) else inputs[side][7]
    inputs[side][7, 5] = value
    with pytest.raises(ValueError, match=f"{side}: row 7 has length"):
        search(inputs["vectors"], inputs["queries"], 2)


@pytest.mark.parametrize(
    ("vectors", "queries", "message"),
    [
        (random_rows(1, 9).astype(float), random_rows(2, 9), "vectors: expected float32.*float64"),
        (random_rows(1, 9), random_rows(2, 9).astype(float), "queries: expected float32.*float64"),
        (random_rows(1, 9), random_rows(2, 9, 25), "dimension 24, queries 25"),
        (random_rows(1, 9), random_rows(2, 9)[0], "queries: expected"),
    ],
)
def test_wrong_types_and_shapes_are_refused(vectors, queries, message):
    with pytest.raises(ValueError, match=message):
        search(vectors, queries, 2)


@pytest.mark.parametrize("k", [0, -1])
def test_counts_below_one_are_refused(k):
    with pytest.raises(ValueError, match="at least 1"):
        search(random_rows(1, 2), random_rows(1, 2), k)


def test_without_faiss_one_line_names_both_commands(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError) as caught:
        search(random_rows(1, 2), random_rows(1, 2), 1)
    assert 'pip install "sharpaudit[cpu]"' in str(caught.value)
    assert 'pip install "sharpaudit[gpu]"' in str(caught.value)
    assert "\n" not in str(caught.value)
