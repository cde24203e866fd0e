"""In how much memory ten million prompts become a corpus, and how long near-duplicate families of a million take.

Prompts are synthetic sentences of 40 to 80 letters, a tenth of the rows repeat another row. Each ingest is that of an
audit, with the lab's tokenizer and harmless prompts, into shards of a run, by a process of its own (`ingest_child`),
whose peak of memory counts.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bench.lines import Line, table
from sharpaudit.errors import UserError
from sharpaudit.origin import module_call
from sharpaudit.seeds import generator

GIB, MINUTES, FILES = 2.0, 10.0, 2000
NEAR = 0.8
BLOCK = 10_000
REPEATED, ALIKE = 0.1, 0.2
"""Shares of rows that repeat an earlier one of their block, and that differ from one in a letter."""
WORDS, LETTERS = 5_000, 7
LEAST_FAMILIES, MOST_FAMILIES = 0.7, 0.95
"""Of near-duplicates, a prompt: of the fifth that differs from another in a letter most join it, and no others."""


@dataclass(frozen=True)
class Measured:
    """n_rows: of the file. n_prompts: distinct ones. n_families: of audited prompts. n_files: of the run then.

    gib: the peak of the process.
    """

    n_rows: int
    n_prompts: int
    n_families: int
    n_files: int
    seconds: float
    gib: float


def measure(folder: Path, n_rows: int, n_near: int) -> tuple[Measured, Measured]:
    """Exact duplicates of n_rows rows, and near-duplicate families of n_near rows; runs are written below `folder`."""
    return _ingested(folder / "exact", n_rows, None), _ingested(folder / "near", n_near, NEAR)


def _ingested(root: Path, n_rows: int, near: float | None) -> Measured:
    """Raises UserError where the corpus does not hold the distinct prompts of the file."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    n_distinct = write_prompts(root / "prompts.txt", n_rows)
    asked = {"prompts": str(root / "prompts.txt"), "run": str(root / "run"), "near": near}
    call = [*module_call("pipelines.bench.ingest_child"), json.dumps(asked)]
    told = subprocess.run(call, check=False, capture_output=True, encoding="utf-8")  # noqa: S603 - our own
    if told.returncode:
        raise UserError(f"{root}: the prompts could not be ingested: {told.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(told.stdout)
    if found["n_prompts"] != n_distinct:
        raise UserError(f"{root}: {found['n_prompts']} prompts in the corpus, {n_distinct} distinct ones in the file")
    shutil.rmtree(root)
    return Measured(n_rows, **found)


def write_prompts(path: Path, n_rows: int) -> int:
    """Write the file, one prompt a line, and return how many are distinct."""
    draw = generator("ingest", "words")
    letters = draw.integers(ord("a"), ord("z") + 1, size=(WORDS, LETTERS), dtype=np.uint8)
    words = [bytes(row[: 2 + i % (LETTERS - 1)]).decode() for i, row in enumerate(letters)]
    distinct = 0
    with path.open("w", encoding="utf-8") as file:
        for block in range(0, n_rows, BLOCK):
            lines = list(_block(words, block, min(BLOCK, n_rows - block)))
            distinct += len(set(lines))
            file.writelines(f"{line}\n" for line in lines)
    return distinct


def _block(words: list[str], first: int, n: int) -> Iterator[str]:
    draw = generator("ingest", "block", first)
    chosen, sizes, kinds = draw.integers(WORDS, size=(n, 13)), draw.integers(6, 13, size=n), draw.random(n)
    made: list[str] = []
    for i, (row, size, kind) in enumerate(zip(chosen.tolist(), sizes.tolist(), kinds.tolist(), strict=True)):
        # The number keeps prompts of two blocks apart.
        line = " ".join([*(words[k] for k in row[:size]), str(first + i)])
        if made and kind < REPEATED:
            line = made[row[0] % len(made)]
        elif made and kind < REPEATED + ALIKE:
            other = made[row[0] % len(made)]
            line = f"{other[: row[1] % 6]}{'xyz'[row[2] % 3]}{other[1 + row[1] % 6 :]}"
        made.append(line)
        yield line


def bench_lines(exact: Measured, near: Measured) -> Iterator[Line]:
    """Memory and files of the exact one, time of the near-duplicates, and that families are those that were made."""
    yield Line("ingest.gib", exact.gib, "GiB", exact.n_rows, goal=GIB, at_most=True)
    yield Line("ingest.files", exact.n_files, "files", exact.n_rows, goal=FILES, at_most=True)
    yield Line("ingest.rows_per_second", exact.n_rows / exact.seconds, "rows a second", exact.n_rows)
    yield Line("ingest.near_minutes", near.seconds / 60, "minutes", near.n_rows, goal=MINUTES, at_most=True)
    yield Line("ingest.near_gib", near.gib, "GiB", near.n_rows)
    yield Line("ingest.families", exact.n_families / exact.n_prompts, "a prompt", exact.n_prompts, goal=1.0)
    share = near.n_families / near.n_prompts
    yield Line("ingest.near_families", share, "a prompt", near.n_prompts, goal=MOST_FAMILIES, at_most=True)
    yield Line("ingest.near_families_least", share, "a prompt", near.n_prompts, goal=LEAST_FAMILIES)


def markdown(exact: Measured, near: Measured) -> str:
    """The table for people."""
    head = ["families", "rows", "distinct prompts", "families of them", "files", "minutes", "GiB at the peak"]
    rows = [
        [
            what,
            *(f"{n:,}" for n in (m.n_rows, m.n_prompts, m.n_families, m.n_files)),
            f"{m.seconds / 60:.1f}",
            f"{m.gib:.2f}",
        ]
        for what, m in (("equal but for case and punctuation", exact), (f"near-duplicates from {NEAR} on", near))
    ]
    return table(head, rows)
