"""What only a CUDA device can show of matching: the same neighbours as faiss finds, the same vectors as on the CPU."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from sharpaudit.embedders import sscd
from sharpaudit.embedders.base import embedder, open_embedder
from sharpaudit.embedders.weights import Shelf
from sharpaudit.matches.search.engines import ByFaiss, ByTorch, engine_for
from sharpaudit.matches.search.flat import search

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


def test_a_search_on_the_device_is_exact():
    drawn = np.random.default_rng(0).standard_normal((20_000, 512)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    drawn[[5, 19_000]] = drawn[5]
    queries = drawn[:1100]
    one, other = search(drawn, queries, 3, ByTorch(torch.device("cuda"))), search(drawn, queries, 3, ByFaiss(4))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert one[1][5, :2].tolist() == [5, 19_000]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(search(drawn, queries, 3, engine_for(torch.device("cuda"))), one, strict=True)
    )


def test_a_network_gives_the_vectors_of_the_cpu(tmp_path):
    path = tmp_path / "sscd_disc_mixup.torchvision.pt"
    torch.save(sscd.new_network(sscd.MIXUP).state_dict(), path)
    card = embedder("sscd-disc-mixup-320", Shelf(tmp_path, (hashlib.sha256(path.read_bytes()).hexdigest(),)))
    shown = list(np.random.default_rng(0).integers(0, 256, (3, 64, 80, 3), dtype=np.uint8))
    here, there = (open_embedder(card, 2, device).describe(shown) for device in ("cpu", "cuda"))
    assert np.abs(here - there).max() < 1e-4
