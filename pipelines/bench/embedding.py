"""How fast `index build` describes pictures, beside a bare loop over the same network: what all the rest costs.

The network is SSCD's ResNet with random weights, from a file as one has it; pictures are PNG files of 256 x 256. The
bare loop reads, decodes and prepares them as the embedder does, and calls the network on as many at a time; it knows of
no index, no hash, no thumbnail and no other process. Builds are timed from the call to the published index, Ray's start
included.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipelines.bench.lines import Line, table
from pipelines.bench.timing import Contender, Timed, ratio, timed
from pipelines.indexing.build import Asked, build
from sharpaudit.config import RunConfig
from sharpaudit.devices import usable_cores, use_threads
from sharpaudit.embedders.base import embedder, open_embedder
from sharpaudit.embedders.sscd import MIXUP, MIXUP_288, new_network
from sharpaudit.embedders.weights import Shelf
from sharpaudit.images import decode, encode_png
from sharpaudit.matches.writing import Kept
from sharpaudit.seeds import generator

SIDE_PX, BATCH = 256, 16
SHARE = 0.9
WORKERS = 2


@dataclass(frozen=True)
class Found:
    """n: pictures. bare: the loop. one, several: builds by one process and by WORKERS of Ray."""

    n: int
    bare: Timed
    one: Timed
    several: Timed


def measure(out: Path, n: int, rounds: int, tell: Callable[[str], None]) -> Found:
    """Write n pictures and weights into `out`, unless they are there, and describe them in each way."""
    use_threads(usable_cores())
    pictures, weights = out / f"pictures-{n}", out / "weights"
    _draw(pictures, n)
    shelf = _random_weights(weights)
    asked = Asked(
        "folder",
        {"folder": str(pictures)},
        {"allow_unreadable": False},
        (MIXUP_288.name,),
        str(weights),
        shelf.sha256,
        BATCH,
    )
    ways: dict[str, Callable[[], object]] = {
        "bare": partial(_bare, sorted(pictures.iterdir()), shelf),
        "one": partial(_build, out / "index", asked, RunConfig()),
        "several": partial(_build, out / "index", asked, RunConfig(executor="ray", workers=WORKERS)),
    }
    rows = [Contender(name, "", n, 1, run) for name, run in ways.items()]
    found = timed(rows, rounds, warm=False, tell=tell)
    return Found(n, found["bare"], found["one"], found["several"])


def _draw(folder: Path, n: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.iterdir())) == n:
        return
    draws = generator("bench", "pictures")
    for i in range(n):
        tones = draws.integers(0, 256, (8, 8, 3), dtype="uint8")
        picture = np.kron(tones, np.ones((SIDE_PX // 8, SIDE_PX // 8, 1), np.uint8))
        (folder / f"{i:06d}.png").write_bytes(encode_png(picture))


def _random_weights(folder: Path) -> Shelf:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{MIXUP}.torchvision.pt"
    if not path.exists():
        torch.manual_seed(0)  # noqa: TID251 - initial weights come from the global generator
        torch.save(new_network(MIXUP).state_dict(), path)
    return Shelf(folder, (hashlib.sha256(path.read_bytes()).hexdigest(),))


def _bare(paths: Sequence[Path], shelf: Shelf) -> None:
    describer = open_embedder(embedder(MIXUP_288.name, shelf), BATCH, "cpu")
    for first in range(0, len(paths), BATCH):
        describer.describe([decode(path.read_bytes()) for path in paths[first : first + BATCH]])


def _build(out: Path, asked: Asked, run: RunConfig) -> None:
    shutil.rmtree(out, ignore_errors=True)
    build(out, asked, Kept(), run)


def bench_lines(found: Found) -> Iterator[Line]:
    """Rates as ratios, ours over the bare loop's."""
    yield ratio("embedding.build_vs_bare", found.one, found.bare, SHARE)
    yield ratio(f"embedding.workers{WORKERS}_vs_bare", found.several, found.bare, SHARE)
    for name in ("bare", "one", "several"):
        times: Timed = getattr(found, name)
        yield Line(f"embedding.rate.{name}", _rate(times), "pictures a second", len(times.rates))


def markdown(found: Found) -> str:
    """The table for people."""
    told = {
        "bare loop over the network": found.bare,
        "`index build`": found.one,
        f"`index build --executor ray --workers {WORKERS}`": found.several,
    }
    bare = _rate(found.bare)
    rows = [[name, f"{_rate(times):.2f}", f"{_rate(times) / bare:.2f}"] for name, times in told.items()]
    return f"{found.n:,} pictures\n\n{table(['', 'pictures a second', 'times the bare loop'], rows)}"


def _rate(times: Timed) -> float:
    return sorted(times.rates)[len(times.rates) // 2]
