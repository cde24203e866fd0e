"""Where vectors are while they are searched: decided by size and room, and of no consequence for the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sharpaudit.matches.search import placing
from sharpaudit.matches.search import vectors as vectors_module
from sharpaudit.matches.search.engines import ByTorch
from sharpaudit.matches.search.flat import search
from sharpaudit.matches.search.placing import place
from sharpaudit.matches.search.vectors import Vectors

CPU = torch.device("cpu")


def drawn(n: int = 60, dimension: int = 32) -> np.ndarray:
    rows = np.random.default_rng(n).standard_normal((n, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def files(folder: Path, dtype: type = np.float32) -> list[Path]:
    found = []
    for number, rows in enumerate(np.split(drawn().astype(dtype), 3)):
        found.append(folder / f"{number}.npy")
        np.save(found[-1], rows)
    return found


@pytest.mark.parametrize(
    ("dtype", "workers", "free", "held"),
    [
        (np.float32, 1, 2 * 7680, True),
        (np.float32, 1, 2 * 7680 - 1, False),
        (np.float32, 9, 2 * 7680, True),  # mapped from the same files
        (np.float16, 2, 4 * 7680, True),  # a copy for each
        (np.float16, 2, 4 * 7680 - 1, False),
    ],
)
def test_vectors_stay_in_memory_if_they_take_half_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, workers: int, free: int, held: bool
) -> None:
    monkeypatch.setattr(placing, "free_memory", lambda: free)
    found = place("auto", Vectors(files(tmp_path, dtype), 32), CPU, workers)
    assert found.held is held
    assert "60 x 32 vectors" in found.told
    assert ("in memory" if held else "read from the disk for every search") in found.told
    assert "of memory are free" in found.told


def test_on_a_gpu_its_own_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 7680, 10**9))
    found = place("auto", Vectors(files(tmp_path, np.float16), 32), torch.device("cuda"), 4)
    assert found.held
    assert "in GPU memory" in found.told


@pytest.mark.parametrize(("asked", "held"), [("memory", True), ("disk", False)])
def test_what_is_asked_for_is_done(tmp_path: Path, asked: str, held: bool) -> None:
    found = place(asked, Vectors(files(tmp_path), 32), CPU)
    assert found.held is held
    assert f'matches.vectors = "{asked}"' in found.told


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_answer_is_the_same_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    monkeypatch.setattr(vectors_module, "SLICE_BYTES", 4 * 32 * 7)
    queries, kept = drawn(11), files(tmp_path, dtype)
    found = [
        search(Vectors(kept, 32, held=held), queries, 4, engine)
        for held in (False, True)
        for engine in (None, ByTorch(CPU))
    ]
    whole = search(np.concatenate([np.load(file) for file in kept]).astype(np.float32), queries, 4)
    for similarities, rows in found:
        assert np.array_equal(rows, whole[1])
        assert np.array_equal(similarities, whole[0])


@pytest.mark.parametrize(("held", "times"), [(True, 3), (False, 6)])
def test_held_slices_are_placed_once_and_others_every_time(tmp_path: Path, held: bool, times: int) -> None:
    placed: list[np.ndarray] = []
    vectors = Vectors(files(tmp_path), 32, held=held)
    for _ in range(2):
        assert [first for first, _ in vectors.slices(placed.append)] == [0, 20, 40]
    assert len(placed) == times


def test_a_file_that_was_removed_is_no_longer_read(tmp_path: Path) -> None:
    kept = files(tmp_path)
    unheld = Vectors(kept, 32)
    kept[1].unlink()
    with pytest.raises(FileNotFoundError):
        search(unheld, drawn(2), 1)


def test_rows_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    vectors = Vectors(files(tmp_path), 32)
    wanted = [41, 3, 3, 59, 20, 0]
    assert np.array_equal(vectors.rows(wanted), drawn()[wanted])
    assert vectors.rows([]).shape == (0, 32)
