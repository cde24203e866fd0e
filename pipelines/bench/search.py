"""How fast the nearest of a million vectors are found, beside plain calls of faiss, and what approximation misses.

The vectors lie in clusters, as descriptors of real pictures do: a centre drawn at random, and members at a cosine of
about .5 to it. Queries are members that are disturbed (matches/search/structures.py), for of random vectors nearest
neighbours mean nothing. Ours and faiss's take turns on the same vectors and the same threads; faiss holds all of them
in memory, and is asked for as many neighbours as we are, of which it gives float32 or compressed similarities.

Ten million vectors of float16 are searched in a process of its own, whose peak of memory counts. They are not held.

Shapes: N vectors, M queries, D dimension.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bench.lines import Line, table
from pipelines.bench.timing import Contender, Timed, ratio, timed
from sharpaudit.devices import usable_cores
from sharpaudit.errors import UserError
from sharpaudit.matches.search.approximate import ApproximateSearch, Structure
from sharpaudit.matches.search.engines import ByFaiss, load_faiss
from sharpaudit.matches.search.flat import search
from sharpaudit.matches.search.structures import build_structure, disturbed
from sharpaudit.matches.search.vectors import Floats, Vectors
from sharpaudit.matches.writing import PART_ROWS
from sharpaudit.origin import module_call
from sharpaudit.seeds import generator

DIMENSION, QUERIES, K = 512, 1000, 1
MEMBERS, COSINE = 100, 0.5
SLOWER, SQ8_RECALL, IVF_RECALL, RSS_GIB = 1.1, 0.99, 0.95, 4.0
KINDS = ("sq8", "ivf-sq8")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """Something that searches. ours, plain: of QUERIES queries and of one. gib: of what it looks through."""

    name: str
    gib: float
    build_s: float
    recall: tuple[int, int]
    many: tuple[Timed, Timed]
    one: tuple[Timed, Timed]


@dataclass(frozen=True)
class Found:
    """rows: exact, then KINDS. disk: from the disk as float16, beside exact in memory. streamed: of the child."""

    n: int
    rows: list[Row]
    disk: tuple[Timed, Timed]
    streamed: dict[str, float]


def measure(out: Path, n: int, n_streamed: int, rounds: int, tell: Tell) -> Found:
    """Write the vectors into `out`, unless an earlier call did, and search them in every way."""
    threads = usable_cores()
    files = clustered(out / f"float32-{n}", n, np.float32, tell)
    halves = clustered(out / f"float16-{n}", n, np.float16, tell)
    vectors = Vectors(files, DIMENSION, held=True)
    queries_MD = disturbed(vectors, QUERIES)
    exact = partial(search, vectors, k=K, engine=ByFaiss(threads))
    rows = [_row("exact", exact, _plain(vectors, threads), queries_MD, rounds, (4 * DIMENSION * n / 2**30, 0.0), tell)]
    for kind in KINDS:
        made, seconds = _structure(out / f"{kind}-{n}", kind, vectors, threads, tell)
        ours = ApproximateSearch(out / f"{kind}-{n}", made, vectors, threads)
        gib = sum((out / f"{kind}-{n}" / chunk.file).stat().st_size for chunk in made.chunks) / 2**30
        plain = _plain_structure(out / f"{kind}-{n}", made)
        # Without lists a structure goes through a million codes one by one, a minute for all queries.
        turns = rounds if kind.startswith("ivf") else max(1, rounds // 3)
        row = _row(kind, partial(ours, k=K), plain, queries_MD, turns, (gib, seconds), tell)
        rows.append(replace(row, recall=(made.recall.found, made.recall.n)))
    unheld = Vectors(halves, DIMENSION)
    disk = timed(
        [
            Contender("memory", "", QUERIES, 0, lambda: exact(queries_MD)),
            Contender("disk", "", QUERIES, 0, lambda: search(unheld, queries_MD, K, ByFaiss(threads))),
        ],
        max(1, rounds // 2),
        tell=partial(_tell, tell, "from the disk"),
    )
    streamed = clustered(out / f"float16-{n_streamed}", n_streamed, np.float16, tell)
    tell(f"{n_streamed:,} vectors from the disk")
    return Found(n, rows, (disk["memory"], disk["disk"]), _in_a_process(streamed, queries_MD[:100], out, threads))


def _row(
    name: str,
    ours: Callable[[Floats], object],
    plain: Callable[[Floats], object],
    queries_MD: Floats,
    rounds: int,
    told: tuple[float, float],
    tell: Tell,
) -> Row:
    """told: GiB and seconds of building."""
    found = []
    for queries in (queries_MD, queries_MD[:1]):
        both = [
            Contender(who, "", len(queries), 0, partial(call, queries))
            for who, call in (("ours", ours), ("plain", plain))
        ]
        times = timed(both, rounds, tell=partial(_tell, tell, f"{name}, {_many(len(queries))}"))
        found.append((times["ours"], times["plain"]))
    return Row(name, *told, (len(queries_MD), len(queries_MD)), found[0], found[1])


def _tell(tell: Tell, what: str, line: str) -> None:
    tell(f"{what}, {line}")


def _many(queries: int) -> str:
    return f"{queries:,} queries" if queries > 1 else "one query"


def _plain(vectors: Vectors, threads: int) -> Callable[[Floats], object]:
    faiss, whole_ND = load_faiss(), vectors.whole()
    faiss.omp_set_num_threads(threads)
    return lambda queries_MD: faiss.knn(queries_MD, whole_ND, K, faiss.METRIC_INNER_PRODUCT)


def _plain_structure(folder: Path, made: Structure) -> Callable[[Floats], object]:
    """Of one chunk, which a million vectors are."""
    index: Any = load_faiss().read_index(str(folder / made.chunks[0].file))
    if made.kind.startswith("ivf"):
        index.nprobe = made.probes
    return lambda queries_MD: index.search(queries_MD, K)


def _structure(folder: Path, kind: str, vectors: Vectors, threads: int, tell: Tell) -> tuple[Structure, float]:
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    made = build_structure(folder, kind, vectors, "", aim=IVF_RECALL, threads=threads, tell=tell)
    return made, time.monotonic() - begun


def clustered(folder: Path, n: int, dtype: type[np.floating[Any]], tell: Tell) -> list[Path]:
    """Files of n vectors in all, PART_ROWS each, (PART_ROWS, DIMENSION); those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, first in enumerate(range(0, n, PART_ROWS)):
        files.append(folder / f"{number:05d}.npy")
        if not files[-1].exists():
            tell(f"drawing vectors {first:,} of {n:,}")
            part = folder / "part.npy"
            np.save(part, _members(number, min(PART_ROWS, n - first)).astype(dtype))
            part.rename(files[-1])
    return files


def _members(number: int, n: int) -> Floats:
    draws = generator("clustered", number)
    centres = _unit(draws.standard_normal((-(-n // MEMBERS), DIMENSION), dtype=np.float32))
    noise = draws.standard_normal((n, DIMENSION), dtype=np.float32) / np.sqrt(np.float32(DIMENSION))
    # A draw of so many dimensions is all but orthogonal to the centre.
    return _unit(COSINE * centres.repeat(MEMBERS, axis=0)[:n] + np.float32((1 - COSINE**2) ** 0.5) * noise)


def _unit(rows: Floats) -> Floats:
    found: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def _in_a_process(files: Sequence[Path], queries_MD: Floats, out: Path, threads: int) -> dict[str, float]:
    """Seconds, rows, queries and GiB at the peak of a process that searches the files without holding them."""
    np.save(out / "queries.npy", queries_MD)
    asked = {"files": [str(file) for file in files], "queries": str(out / "queries.npy"), "threads": threads}
    call = [*module_call("pipelines.bench.search_child"), json.dumps(asked)]
    told = subprocess.run(call, check=False, capture_output=True, encoding="utf-8")  # noqa: S603 - our own
    if told.returncode:
        raise UserError(f"{out}: could not be searched: {told.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(told.stdout)
    return found


def bench_lines(found: Found) -> Iterator[Line]:
    """Times as ratios, ours over faiss's; recall; memory."""
    for row in found.rows:
        name = row.name.partition("-")[0]
        for queries, (ours, plain) in (("", row.many), (".one", row.one)):
            told = f"search.{name}_vs_faiss{queries}"
            # One query takes a moment, and so do a thousand of an inverted structure: a large share of it is that
            # similarities are computed anew, which faiss does not do.
            has_goal = not queries and not row.name.startswith("ivf")
            yield replace(ratio(told, plain, ours, SLOWER if has_goal else None), at_most=True)
    for row, goal in zip(found.rows[1:], (SQ8_RECALL, IVF_RECALL), strict=True):
        yield Line(
            f"search.{row.name.partition('-')[0]}_recall1",
            row.recall[0] / row.recall[1],
            "share",
            row.recall[1],
            goal=goal,
        )
    memory, disk = found.disk
    yield ratio("search.stream_vs_memory", memory, disk, None)
    yield Line("search.stream_rss_gib", found.streamed["gib"], "GiB", 1, goal=RSS_GIB, at_most=True)
    yield Line("search.stream_s", found.streamed["seconds"], "s", 1)


def markdown(found: Found) -> str:
    """The table for people."""
    rows = []
    for row in found.rows:
        many, one = ([QUERIES / _median(t) for t in row.many], [1 / _median(t) for t in row.one])
        rows.append(
            [row.name, f"{row.gib:.2f}", f"{row.build_s:.0f}", f"{row.recall[0] / row.recall[1]:.3f}"]
            + [f"{seconds:.2f}" for seconds in many]
            + [f"{1000 * seconds:.0f}" for seconds in one]
        )
    head = ["", "GiB", "built in s", "recall@1", "1,000 queries: s", "faiss: s", "one query: ms", "faiss: ms"]
    told, (memory, disk) = found.streamed, found.disk
    return (
        f"{found.n:,} vectors of {DIMENSION} dimensions\n\n{table(head, rows)}\n"
        f"Exact search of them as float16 from the disk takes {_median(memory) / _median(disk):.2f} times as long as "
        f"in memory. {told['rows']:,.0f} of float16 are searched exactly for {told['queries']:,.0f} queries in "
        f"{told['seconds']:.0f} s, by a process that holds {told['gib']:.2f} GiB at most."
    )


def _median(times: Timed) -> float:
    return float(np.median(times.rates))
