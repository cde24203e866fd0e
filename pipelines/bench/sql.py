"""How fast a run of ten million scores answers, and in how much memory its report's facts are built.

The run is synthetic and whole: every table is written through the run's own shards, with prompts, harmless and
memorised scores, controls, pictures and matches in the proportions of a night's audit, and its sums agree. Queries are
those that docs/queries.md begins with, on audit.duckdb, each on a connection of its own; the facts are collected by a
process of its own, whose peak of memory counts.

Shapes: N prompts of a shard.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.bench.lines import Line, table
from sharpaudit.errors import UserError
from sharpaudit.origin import module_call
from sharpaudit.seeds import generator
from sharpaudit.statistics.conformal import p_values
from sharpaudit.tables.declared import described
from sharpaudit.tables.query import materialise, open_file, query
from sharpaudit.tables.reading import current_files
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import (
    BANDS,
    CORPUS,
    MATCHES,
    ORIGINS,
    RUN_TABLES,
    SAMPLES,
    SCORES,
    TRIAGE,
    UNCONDITIONAL,
)
from sharpaudit.tables.shards import TableCommit
from sharpaudit.triage.select import EDGES, LABELS

METRICS = ("residual_gap", "noise_gap", "sharpness")
SHARD = 50_000
CALIBRATION, FIT, BAND = 9_999, 1_000, 100
ALPHA, MEMORISED, CONTROLS, PER_PROMPT = 0.01, 0.001, 0.0001, 4
"""Rate of flags, shares of memorised prompts and of controls among the audited ones, samples of a prompt."""
REPEATS = 3
SECONDS, GIB, CORES = 2.0, 1.0, 2
QUERIES = {
    "the findings, worst first": """
        select prompt, n_copies, n_samples, best_similarity, p_value, best_reference_id
        from findings order by best_similarity desc limit 20""",
    "their source rows": """
        select o.source, o.source_row, o.external_id, f.prompt
        from findings f join origins o using (prompt_id) order by o.source, o.source_row""",
    "how the metrics rank the findings": """
        select f.prompt, r.* exclude (prompt_id, role)
        from findings f join prompt_ranks r using (prompt_id) order by f.prompt""",
    "what the control sample found": """
        select t.stratum, count(*) as unflagged, count(*) filter (t.selected_for = 'control') as drawn,
               count(f.prompt_id) as copied
        from triage t left join findings f using (prompt_id) where t.stratum is not null group by all order by all""",
    "what was rejected, and why": """
        select stage, table_name, status, n from outcomes where status not in ('ok', 'cleared') order by n desc""",
}
EMPTY = ("what was rejected, and why",)
"""Queries that this run answers with no row: nothing of it is rejected."""
STAGES = {
    table.stage: {"fingerprint": digest_of(["synthetic", [t.version for t in RUN_TABLES if t.stage == table.stage]])}
    for table in RUN_TABLES
}
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Seconds of each query (median), of writing, of audit.duckdb and of the facts; rows of scores; peak of memory."""

    rows: int
    queries: dict[str, float]
    answers: dict[str, int]
    written_s: float
    materialised_s: float
    facts_s: float
    facts_gib: float


def measure(root: Path, n_rows: int) -> Measured:
    """Write the run into `root`, unless an earlier call did, then ask it, on at most CORES cores."""
    with few_cores():
        return _measure(root, n_rows)


@contextmanager
def few_cores() -> Iterator[None]:
    """This process and its children on at most CORES of the cores that it may use, where a system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:CORES]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _measure(root: Path, n_rows: int) -> Measured:
    begun = time.monotonic()
    run = RunFolder.open(root) if root.exists() else write_run(root, n_rows)
    if (run.record() or {}).get("stages") != STAGES:
        raise UserError(f"{root}: written by another version; remove it, or name another folder with --out")
    written = time.monotonic() - begun
    begun = time.monotonic()
    materialise(current_files(run), root / "audit.duckdb")
    materialised = time.monotonic() - begun
    seconds: dict[str, list[float]] = {name: [] for name in QUERIES}
    answers = {}
    for _ in range(REPEATS):
        for name, sql in QUERIES.items():
            with open_file(root / "audit.duckdb") as connection:
                begun = time.monotonic()
                answers[name] = len(query(connection, sql).rows)
                seconds[name].append(time.monotonic() - begun)
    facts = facts_in_a_process(root)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Measured(n_rows, medians, answers, written, materialised, facts["seconds"], facts["gib"])


def facts_in_a_process(root: Path) -> dict[str, float]:
    """Seconds and GiB at the peak of a process that builds the report's facts. Raises UserError where sums differ."""
    call = module_call("pipelines.bench.sql_facts")
    told = subprocess.run([*call, str(root)], check=False, capture_output=True, encoding="utf-8")  # noqa: S603 - our own
    if told.returncode:
        raise UserError(f"{root}: the facts could not be built: {told.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(told.stdout)
    return found


def write_run(root: Path, n_rows: int) -> RunFolder:
    """A finished run with n_rows rows of scores, as tables alone: there are no pictures. Whole or not at `root`."""
    n_audit = n_rows // len(METRICS) - CALIBRATION
    if n_audit < SHARD:
        raise UserError(f"--rows {n_rows}: at least {len(METRICS) * (SHARD + CALIBRATION):,} are needed")
    part = root.with_name(f".{root.name}.inprogress")
    shutil.rmtree(part, ignore_errors=True)
    run = RunFolder.create(part)
    run.write_record({"stages": STAGES, "tables": [described(table) for table in RUN_TABLES]})
    calibration = generator("sql", "calibration").lognormal(size=CALIBRATION)
    written: dict[str, list[str]] = {table.name: [] for table in RUN_TABLES}
    sizes = {"calibration": CALIBRATION, "fit": FIT, "audit": n_audit}
    for role, size in sizes.items():
        for first in range(0, size, SHARD):
            shard = f"{role}-{first:08d}"
            for name, rows in _shard(role, first, min(SHARD, size - first), calibration).items():
                table = next(table for table in RUN_TABLES if table.name == name)
                run.table(table).commit(shard, rows, input_digest="synthetic")
                written[name].append(shard)
    for name, rows in _once().items():
        table = next(table for table in RUN_TABLES if table.name == name)
        run.table(table).commit("all", rows, input_digest="synthetic")
        written[name].append("all")
    for table in RUN_TABLES:
        run.table(table).commit_table(TableCommit(written[table.name]))
    part.rename(root)
    return RunFolder.open(root)


def _shard(role: str, first: int, n: int, calibration: Values) -> dict[str, pa.Table]:
    """The rows of n prompts in every table that has some."""
    rng = generator("sql", role, first)
    digits = rng.bytes(16 * n).hex()
    ids = [digits[i : i + 32] for i in range(0, len(digits), 32)]
    memorised = (rng.random(n) < MEMORISED) & (role == "audit")
    value = calibration if role == "calibration" else rng.lognormal(size=n) * np.where(memorised, 50.0, 1.0)
    decided = _decided(rng, role, value, calibration)
    prompts = [
        f"a {word} number {first + i} of the {role} prompts" for i, word in zip(range(n), _words(rng, n), strict=True)
    ]
    ok = {"status": ["ok"] * n}
    found: dict[str, dict[str, Any]] = {
        ORIGINS.name: {"source": [f"{role}:prompts.csv"] * n, "source_row": range(first, first + n), "prompt_id": ids}
        | ok,
        CORPUS.name: {"prompt_id": ids, "prompt": prompts, "role": [role] * n, "family_id": ids, "model_input_id": ids}
        | {"n_tokens": [12] * n, "truncated": [False] * n}
        | ok,
        TRIAGE.name: {"prompt_id": ids, "role": [role] * n} | decided | ok,
    }
    if role != "fit":
        found[SCORES.name] = _scores(rng, ids, value)
    chosen = [i for i, k in enumerate(decided["n_samples"]) if k]
    if chosen:
        found[SAMPLES.name], found[MATCHES.name] = _pictures(rng, [ids[i] for i in chosen], memorised[chosen])
    return {name: _table(name, columns) for name, columns in found.items()}


def _decided(rng: np.random.Generator, role: str, value: Values, calibration: Values) -> dict[str, Any]:
    n = len(value)
    p = p_values(value, calibration) if role == "audit" else np.full(n, np.nan)
    flagged = p <= ALPHA
    control = (role == "audit") & ~flagged & (rng.random(n) < CONTROLS)
    looked_at = (role == "calibration") & (value >= np.sort(calibration)[-int(ALPHA * (CALIBRATION + 1))])
    band = (np.arange(n) < BAND) & (role == "fit")
    chosen = np.select([flagged, control, looked_at, band], ["flagged", "control", "calibration_check", "band"], "none")
    stratum = np.array([*LABELS, None], dtype=object)[np.where(flagged | np.isnan(p), -1, np.searchsorted(EDGES, p))]
    scored = role != "fit"
    return {
        "tier": [1 if scored else None] * n,
        "metric": [METRICS[0] if scored else None] * n,
        "value": value if scored else [None] * n,
        "p_value": pa.array(p, from_pandas=True),
        "q_value": pa.array(np.minimum(1, p * 50), from_pandas=True),
        "calibrated_by": ["all" if scored else None] * n,
        "flagged": flagged,
        "selected_for": chosen,
        "n_samples": np.where(chosen == "none", 0, PER_PROMPT),
        "stratum": pa.array(stratum, pa.string()),
    }


def _scores(rng: np.random.Generator, ids: Sequence[str], value: Values) -> dict[str, Any]:
    n, m = len(ids), len(METRICS)
    values = np.stack([value, *(value * rng.lognormal(sigma=0.3, size=n) for _ in METRICS[1:])], axis=1).ravel()
    return {
        "prompt_id": [name for name in ids for _ in METRICS],
        "tier": [1] * n * m,
        "metric": list(METRICS) * n,
        "value": values,
        "seed_values": pa.ListArray.from_arrays(np.arange(n * m + 1, dtype=np.int32), pa.array(values)),
        "n_seeds": [1] * n * m,
        "timestep": [981] * n * m,
        "evaluations": [1, 0, 2] * n,
        "status": ["ok"] * n * m,
    }


def _pictures(
    rng: np.random.Generator, ids: Sequence[str], memorised: npt.NDArray[np.bool_]
) -> tuple[dict[str, Any], dict[str, Any]]:
    n = len(ids) * PER_PROMPT
    prompt = [name for name in ids for _ in range(PER_PROMPT)]
    sample = [f"{name}-{k}" for name in ids for k in range(PER_PROMPT)]
    copied = np.repeat(memorised, PER_PROMPT) & (rng.random(n) < 0.8)
    samples = {"sample_id": sample, "prompt_id": prompt, "seed_index": list(range(PER_PROMPT)) * len(ids)}
    samples |= {"evaluations": [50] * n, "status": ["ok"] * n}
    matches = {"sample_id": sample, "prompt_id": prompt, "profile": ["pixels-16"] * n, "rank": [1] * n}
    matches |= {"reference_id": [f"training-{i:07d}" for i in rng.integers(10**7, size=n)]}
    matches |= {"similarity": np.where(copied, 0.9, 0.3) + 0.05 * rng.random(n)}
    return samples, matches | {"band": np.where(copied, "copy", "none"), "status": ["ok"] * n}


def _once() -> dict[str, pa.Table]:
    known = {"seed_index": [0], "place": ["first"], "x0_hat": [[0.0]], "noise_floor": [0.0], "evaluations": [1]}
    band = {"profile": ["pixels-16"], "n_samples": [PER_PROMPT * BAND], "n_prompts": [BAND], "copy_above": [0.8]}
    found = {UNCONDITIONAL.name: known, BANDS.name: band | {"near_above": [0.6]}}
    return {name: _table(name, columns | {"status": ["ok"]}) for name, columns in found.items()}


def _table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    schema = next(table.schema for table in RUN_TABLES if table.name == name)
    n = len(columns["status"])

    def column(field: pa.Field) -> pa.Array:
        found = columns.get(field.name)
        if found is None:
            return pa.nulls(n, field.type)
        return found.cast(field.type) if isinstance(found, pa.Array) else pa.array(found, field.type)

    return pa.table([column(field) for field in schema], schema=schema)


def _words(rng: np.random.Generator, n: int) -> list[str]:
    known = np.array(["photograph", "drawing", "painting", "poster", "woodcut", "sketch"])
    return list(known[rng.integers(len(known), size=n)])


def bench_lines(found: Measured) -> Iterator[Line]:
    """Seconds and memory, each at most its goal; a query that answers nothing is fast for nothing."""
    for i, (name, seconds) in enumerate(found.queries.items(), 1):
        yield Line(f"sql.q{i}", seconds, "s", REPEATS, goal=SECONDS, at_most=True)
        yield Line(f"sql.q{i}.rows", found.answers[name], "rows", REPEATS, goal=None if name in EMPTY else 1)
    yield Line("sql.facts_gib", found.facts_gib, "GiB", 1, goal=GIB, at_most=True)
    for name in ("facts_s", "materialised_s", "written_s"):
        yield Line(f"sql.{name}", getattr(found, name), "s", 1)


def markdown(found: Measured) -> str:
    """The table for people."""
    rows = [[name, f"{seconds:.2f}", f"{found.answers[name]:,}"] for name, seconds in found.queries.items()]
    rows.append([f"the report's facts, peak {found.facts_gib:.2f} GiB", f"{found.facts_s:.1f}", ""])
    rows.append(["audit.duckdb", f"{found.materialised_s:.1f}", ""])
    return f"{found.rows:,} rows of scores\n\n{table(['', 'seconds', 'rows'], rows)}"
