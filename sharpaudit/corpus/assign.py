"""Roles: every prompt gets exactly one, and every source row exactly one outcome.

Prompts are told apart by `prompt_id` and kept together by `family_id`; a prompt's family and style are those of its
first row. Audited means audit or positive control, harmless means fit or calibration.

- No family is both audited and harmless. Among rows read together the audited side wins and the harmless
  rows become `in_audit`; against an earlier call, whose prompts already fit or calibrate, an audited row comes too late
  and becomes `in_calibration`.
- A positive control that is also an audited prompt is `in_audit`; one that an earlier call took keeps its role.
- A `harmless` file is split by family, the half of smaller hash (rounded up) to fit, so that fit and calibration are
  disjoint. Separate files must be disjoint by themselves.
- The calibration set holds one member of each family, that of smallest hash; the others are `family_represented`.

A duplicate has status ok and the id of the prompt it repeats; a rejected row has no prompt_id. The outcome
of a call is, by key, the same for every order of the rows. Audited rows that come in several calls give the same
prompts as in one, less those that come too late.

All of it is set logic over tables of a `Scratch`, in this order: `rows` as read, `asked` (a line for each distinct
prompt), `judged` (what earlier calls say about it), `harmless`, and in the end `fresh` (the new prompts with their
role) and `refused` (why a use of a prompt is not granted). A use is a number, the place in USES, and in `uses` a bit:
1 audit, 2 positive control, 4 fit, 8 calibration, 16 harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sharpaudit.config import MIN_FIT
from sharpaudit.corpus.check import check
from sharpaudit.corpus.dedup import family_id, names_family, prompt_id
from sharpaudit.corpus.near import join_near_duplicates
from sharpaudit.corpus.read import read_rows
from sharpaudit.corpus.rows import PromptRow, Source
from sharpaudit.corpus.scratch import ROWS_PER_BATCH, Scratch, cut
from sharpaudit.denoisers.base import Tokenizer
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.seeds import rank_hash
from sharpaudit.tables.schemas import CORPUS, ORIGINS, ROLES

HARMLESS = ("fit", "calibration")
USES = ("audit", "positive_control", "fit", "calibration", "harmless")
"""What a file of prompts is for."""
MAX_SHOWN = 3
_PROMPTS_PER_BATCH = 1024
_ROWS_PER_READ = 4 * ROWS_PER_BATCH
_ROWS = pa.schema(
    {
        "ord": pa.int64(),
        "use": pa.uint8(),
        "source": pa.string(),
        "source_row": pa.int64(),
        "id": pa.string(),
        "family": pa.string(),
        "named": pa.bool_(),
        "style": pa.string(),
        "prompt": pa.binary(),
        "external_id": pa.string(),
        "labels": pa.map_(pa.string(), pa.string()),
        "status": pa.string(),
        "reason": pa.string(),
    }
)
"""ord: the number of the row in this call. named: whether the user named the family."""
_KNOWN = pa.schema({"id": pa.string(), "family": pa.string(), "role": pa.string(), "prompt": pa.binary()})
_ASKED = """CREATE TABLE asked AS
    SELECT id, min(ord) AS ord, arg_min(family, ord) AS family, arg_min(named, ord) AS named,
        bit_or((1 << use)::UTINYINT) AS uses
    FROM rows WHERE id IS NOT NULL GROUP BY id"""
_JUDGED = """CREATE TABLE judged AS
    WITH families AS (SELECT family, min(role) AS role FROM known GROUP BY family)
    SELECT a.*, k.role AS role_before, f.role AS family_before,
        coalesce(k.role IN ('fit', 'calibration'), false) OR coalesce(f.role IN ('fit', 'calibration'), false) AS late,
        coalesce(k.role IN ('audit', 'positive_control'), false) OR (a.uses & 3 > 0 AND NOT late) AS audited
    FROM asked a LEFT JOIN known k ON k.id = a.id LEFT JOIN families f ON f.family = a.family"""
_HARMLESS = """CREATE TABLE harmless AS
    WITH claimed AS (
        SELECT family FROM judged WHERE uses & 3 > 0 AND NOT late
        UNION SELECT family FROM known WHERE role IN ('audit', 'positive_control'))
    SELECT j.* FROM judged j ANTI JOIN claimed USING (family) WHERE j.uses & 28 > 0 AND NOT j.audited"""
_SIDED = """CREATE TABLE sided AS
    WITH files AS (SELECT family, bit_or(uses) AS uses FROM harmless GROUP BY family)
    SELECT h.*, coalesce(
        h.family_before,
        CASE WHEN files.uses & 8 > 0 THEN 'calibration' WHEN files.uses & 4 > 0 THEN 'fit' ELSE halves.role END) AS role
    FROM harmless h JOIN files USING (family) LEFT JOIN halves USING (family)"""
_FRESH = """CREATE TABLE fresh AS
    SELECT id, ord, family, CASE WHEN uses & 1 > 0 THEN 'audit' ELSE 'positive_control' END AS role
    FROM judged WHERE audited AND role_before IS NULL
    UNION ALL
    SELECT id, ord, family, role FROM sided ANTI JOIN represented USING (id) WHERE role_before IS NULL"""
_REFUSED = """CREATE TABLE refused AS
    SELECT id, 3 AS uses, $late AS status, $why_late AS reason FROM judged WHERE uses & 3 > 0 AND late
    UNION ALL
    SELECT id, 2, $audited, $why_audited FROM judged
    WHERE uses & 2 > 0 AND NOT late AND coalesce(role_before, CASE WHEN uses & 1 > 0 THEN 'audit' END) = 'audit'
    UNION ALL
    SELECT id, 28, $audited, $why_audited FROM judged ANTI JOIN harmless USING (id) WHERE uses & 28 > 0
    UNION ALL
    SELECT id, 28, $represented, $why_represented FROM represented"""
_TOLD = """CREATE VIEW told AS
    SELECT r.* REPLACE (coalesce(f.status, r.status) AS status, coalesce(f.reason, r.reason) AS reason),
        f.id IS NOT NULL AS is_refused
    FROM rows r LEFT JOIN refused f ON f.id = r.id AND f.uses & (1 << r.use) > 0"""


@dataclass(frozen=True)
class Ingested:
    """n_rows: source rows read. counts: new prompts by role; none for a role without any."""

    n_rows: int
    counts: dict[str, int]
    _scratch: Scratch
    _tokenizer: Tokenizer

    def origins(self, size: int) -> Iterator[pa.Table]:
        """One row per source row, in the order of the files, in tables of `size` rows."""
        return cut(self._origins(), size)

    def corpus(self, role: str, size: int) -> Iterator[pa.Table]:
        """The new prompts of a role in order of appearance, in tables of `size` rows."""
        return cut(self._corpus(role), size)

    def styles(self, role: str) -> dict[str | None, int]:
        """How many new prompts of a role each style has; None: those without one."""
        sql = """SELECT r.style, count(*) FROM fresh f JOIN rows r ON r.ord = f.ord WHERE f.role = $role GROUP BY ALL"""
        return dict(self._scratch.rows(sql, {"role": role}))

    def statuses(self, uses: Sequence[str]) -> dict[str, int]:
        """How many rows of these uses ended how."""
        return _statuses(self._scratch, uses)

    def rows_of_sources(self) -> dict[str, int]:
        """How many rows each source gave."""
        return dict(self._scratch.rows("SELECT source, count(*) FROM rows GROUP BY source ORDER BY min(ord)"))

    def represented(self) -> list[tuple[str, str]]:
        """Family and text of prompts that do not calibrate since another member of their family stands for them."""
        return self._scratch.rows("""SELECT hex_of(a.family), decode(r.prompt)
            FROM represented p JOIN asked a USING (id) JOIN rows r ON r.ord = a.ord ORDER BY ALL""")

    def _origins(self) -> Iterator[pa.Table]:
        for first in range(0, self.n_rows, _ROWS_PER_READ):
            found = self._scratch.stream(
                """SELECT source, source_row, CASE WHEN NOT is_refused THEN hex_of(id) END AS prompt_id,
                        external_id, labels, status, reason
                    FROM told WHERE ord >= $first AND ord < $end ORDER BY ord""",
                {"first": first, "end": first + _ROWS_PER_READ},
            )
            yield from (part.cast(ORIGINS.schema) for part in found)

    def _corpus(self, role: str) -> Iterator[pa.Table]:
        for first in range(0, self.n_rows, _ROWS_PER_READ):
            found = self._scratch.stream(
                """SELECT hex_of(f.id) AS prompt_id, r.prompt, hex_of(f.family) AS family_id, r.style
                    FROM fresh f JOIN rows r ON r.ord = f.ord
                    WHERE f.role = $role AND f.ord >= $first AND f.ord < $end AND r.ord >= $first AND r.ord < $end
                    ORDER BY f.ord""",
                {"role": role, "first": first, "end": first + _ROWS_PER_READ},
            )
            for part in cut(found, _PROMPTS_PER_BATCH):
                yield _prompts(part, role, self._tokenizer)


def assign(
    sources: Sequence[tuple[Source, int, int | None]],
    known: Iterable[pa.Table],
    tokenizer: Tokenizer,
    seed: int,
    scratch: Scratch,
    near_duplicates: float | None = None,
    represented: Sequence[tuple[str, str]] = (),
) -> Ingested:
    """Read the rows start, ..., stop - 1 of each (source, start, stop) and give every prompt its role.

    known: what earlier calls of this run made, as tables of prompt_id, family_id, role and prompt. scratch: a new one.
    near_duplicates: similarity from which prompts are one family, if at all. represented: `Ingested.represented` of
    earlier calls, which near-duplicates are held against as well. Raises UserError where fit and calibration files
    overlap, and where too few harmless prompts are left.
    """
    # Audited files first, whatever the order given: who comes first claims the family.
    in_order = sorted(sources, key=lambda entry: USES.index(entry[0].use))
    scratch.create("rows", _ROWS, ids=("id", "family"))
    scratch.create("known", _KNOWN, ids=("id", "family"))
    n_rows = 0
    for part in _read(in_order):
        scratch.insert("rows", part)
        n_rows += part.num_rows
    for part in known:
        scratch.insert("known", part.select(["prompt_id", "family_id", "role", "prompt"]))
    scratch.run(_ASKED)
    if near_duplicates is not None:
        join_near_duplicates(scratch, near_duplicates, represented)
    _decide(scratch, seed)
    files = _shown([printable(str(source.path)) for source, _, _ in in_order if source.use in USES[2:]])
    if files:
        _require_enough(scratch, files)
    counts = dict(scratch.rows("SELECT role, count(*) FROM fresh GROUP BY role"))
    return Ingested(n_rows, {role: counts[role] for role in ROLES if role in counts}, scratch, tokenizer)


def _read(sources: Iterable[tuple[Source, int, int | None]]) -> Iterator[pa.Table]:
    """The rows in tables of _ROWS."""
    n, held = 0, []
    for source, start, stop in sources:
        for row in read_rows(source, start, stop):
            held.append(_entry(n, source, row))
            n += 1
            if len(held) == ROWS_PER_BATCH:
                yield pa.Table.from_pylist(held, _ROWS)
                held = []
    if held:
        yield pa.Table.from_pylist(held, _ROWS)


def _entry(number: int, source: Source, row: PromptRow) -> dict[str, Any]:
    text, status = check(row.prompt) if row.problem is None else (None, row.problem)
    return {
        "ord": number,
        "use": USES.index(source.use),
        "source": source.name,
        "source_row": row.source_row,
        "id": None if text is None else prompt_id(text),
        "family": None if text is None else family_id(text, row.family),
        "named": names_family(row.family),
        "style": row.style,
        "prompt": None if text is None else text.encode(),
        "external_id": row.external_id,
        "labels": list(row.labels.items()) if source.labels else None,
        "status": status,
        "reason": None if status is Status.OK else row.detail or status.describe(),
    }


def _decide(scratch: Scratch, seed: int) -> None:
    """From `asked` to `fresh` and `refused`."""
    scratch.run(_JUDGED)
    scratch.run(_HARMLESS)
    _require_apart(scratch)
    families = [name for (name,) in scratch.rows("SELECT DISTINCT hex_of(family) FROM harmless WHERE uses & 16 > 0")]
    by_hash = sorted(families, key=lambda family: rank_hash(seed, "split", family))
    half = (len(by_hash) + 1) // 2
    roles = ["fit"] * half + ["calibration"] * (len(by_hash) - half)
    scratch.create("halves", pa.schema({"family": pa.string(), "role": pa.string()}), ids=("family",))
    scratch.insert("halves", pa.table({"family": pa.array(by_hash, pa.string()), "role": pa.array(roles, pa.string())}))
    scratch.run(_SIDED)
    _represent(scratch, seed)
    scratch.run(_FRESH)
    refusals = {"late": Status.IN_CALIBRATION, "audited": Status.IN_AUDIT, "represented": Status.FAMILY_REPRESENTED}
    why = {f"why_{name}": status.describe() for name, status in refusals.items()}
    scratch.run(_REFUSED, {name: str(status) for name, status in refusals.items()} | why)
    scratch.run(_TOLD)


def _represent(scratch: Scratch, seed: int) -> None:
    """`represented`: who shall not calibrate, since another member of the family does; one that did so before stays."""
    several = scratch.rows(
        """SELECT hex_of(id), hex_of(family) FROM (
                SELECT *, count(*) OVER (PARTITION BY family) AS members FROM sided
                WHERE role = 'calibration' AND role_before IS NULL AND family_before IS NULL)
            WHERE members > 1"""
    )
    chosen: dict[str, str] = {}
    for name, family in several:
        held = chosen.get(family)
        if held is None or rank_hash(seed, "calibrate", name) < rank_hash(seed, "calibrate", held):
            chosen[family] = name
    others = [name for name, family in several if chosen[family] != name]
    scratch.create("represented", pa.schema({"id": pa.string()}), ids=("id",))
    scratch.insert("represented", pa.table({"id": pa.array(others, pa.string())}))
    scratch.run(
        """INSERT INTO represented SELECT id FROM sided
           WHERE role = 'calibration' AND role_before IS NULL AND family_before IS NOT NULL"""
    )


def _require_apart(scratch: Scratch) -> None:
    """Refuse fit and calibration files that share a family."""
    scratch.run("""CREATE VIEW shared AS SELECT DISTINCT h.id, h.family FROM harmless h SEMI JOIN
        (SELECT family FROM harmless WHERE uses & 4 > 0) f USING (family) WHERE h.uses & 8 > 0""")
    first = """SELECT decode(r.prompt) FROM rows r SEMI JOIN shared USING (id) WHERE r.use = 3 ORDER BY r.ord LIMIT 1"""
    found = scratch.rows(first)
    if found:
        n = scratch.rows("SELECT count(DISTINCT family) FROM shared")[0][0]
        raise UserError(
            f'fit and calibration share {n} prompt families, for instance "{printable(found[0][0], 80)}": '
            "take them out of one of the two files, or give one calibration.file, which is split by family"
        )


def _shown(files: list[str]) -> list[str]:
    """The files of an error line: a folder may hold hundreds."""
    return files if len(files) <= MAX_SHOWN else [*files[: MAX_SHOWN - 1], f"{len(files) - MAX_SHOWN + 1} more"]


def _require_enough(scratch: Scratch, files: Sequence[str]) -> None:
    counted = "SELECT role, count(*) FROM (SELECT role FROM known UNION ALL SELECT role FROM fresh) GROUP BY role"
    held = dict.fromkeys(HARMLESS, 0) | dict(scratch.rows(counted))
    if held["fit"] >= MIN_FIT and held["calibration"] > 0:
        return
    of_rows = _statuses(scratch, USES[2:])
    rejected = ", ".join(f"{n} {status}" for status, n in sorted(of_rows.items()) if status != Status.OK)
    raise UserError(
        f"{' and '.join(files)}: {held['fit']} fit and {held['calibration']} calibration prompts are left of "
        f"{sum(of_rows.values())} rows ({rejected or 'none rejected'}); at least {MIN_FIT} and 1 are needed: "
        "add harmless prompts that are not audited"
    )


def _statuses(scratch: Scratch, uses: Sequence[str]) -> dict[str, int]:
    counted = "SELECT status, count(*) FROM told WHERE list_contains($uses, use) GROUP BY status"
    return dict(scratch.rows(counted, {"uses": [USES.index(use) for use in uses]}))


def _prompts(rows: pa.Table, role: str, tokenizer: Tokenizer) -> pa.Table:
    """Prompts with what the tokenizer makes of them."""
    texts = [prompt.decode() for prompt in rows["prompt"].to_pylist()]
    tokens, n = tokenizer.tokens(texts), len(texts)
    columns = {
        "prompt_id": rows["prompt_id"],
        "prompt": pa.array(texts, pa.string()),
        "role": pa.repeat(role, n),
        "family_id": rows["family_id"],
        "style": rows["style"],
        "n_tokens": pa.array([t.n_tokens for t in tokens], pa.int32()),
        "truncated": pa.array([t.truncated for t in tokens], pa.bool_()),
        "model_input_id": pa.array([t.model_input_id for t in tokens], pa.string()),
        "status": pa.repeat(str(Status.OK), n),
        "reason": pa.nulls(n, pa.string()),
    }
    return pa.table(columns).cast(CORPUS.schema)
