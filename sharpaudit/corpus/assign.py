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
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sharpaudit.corpus.check import check
from sharpaudit.corpus.dedup import family_id, prompt_id
from sharpaudit.corpus.read import read_rows
from sharpaudit.corpus.rows import Row, Source
from sharpaudit.denoisers.base import Tokenizer
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.seeds import rank_hash
from sharpaudit.tables.schemas import CORPUS, ORIGINS, ROLES

MIN_FIT = 10
"""Fit prompts without which no subspace and no threshold can be learnt."""
HARMLESS = ("fit", "calibration")
_AUDITED = ("audit", "positive_control")
_HARMLESS_USES = (*HARMLESS, "harmless")
_USES = (*_AUDITED, *_HARMLESS_USES)
_PROMPTS_PER_BATCH = 1024
_ROWS_PER_CHUNK = 65_536


@dataclass(frozen=True)
class Known:
    """What earlier calls of this run made: the role of each prompt_id and of each family_id."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ingested:
    """origins: one row per source row. corpus: by role, the prompts that are new; no entry for a role without any."""

    origins: pa.Table
    corpus: dict[str, pa.Table]


@dataclass(frozen=True)
class _Read:
    """All rows as columns, so that a million of them need a fraction of a gigabyte.

    rows: the columns of origins. uses: the use of each row's source. asked: by use, the distinct prompts in order of
    appearance. texts, families, styles: by prompt_id; texts of new prompts only.
    """

    rows: dict[str, list[Any]]
    uses: list[str]
    asked: dict[str, dict[str, None]]
    texts: dict[str, str]
    families: dict[str, str]
    styles: dict[str, str | None]


@dataclass(frozen=True)
class _Roles:
    """prompts, families: their role, at first as earlier calls gave it. refused: (use, prompt_id) to the reason."""

    prompts: dict[str, str]
    families: dict[str, str]
    refused: dict[tuple[str, str], Status]


def assign(
    sources: Sequence[tuple[Source, int, int | None]], known: Known, tokenizer: Tokenizer, seed: int
) -> Ingested:
    """Read the rows start, ..., stop - 1 of each (source, start, stop) and give every prompt its role.

    Raises UserError where fit and calibration files overlap, and where too few harmless prompts are left.
    """
    # Audited files first, whatever the order given: who comes first claims the family.
    in_order = sorted(sources, key=lambda entry: _USES.index(entry[0].use))
    read = _read(in_order, known)
    roles = _Roles(dict(known.prompts), dict(known.families), {})
    _assign_audited(read, roles)
    _assign_harmless(read, roles, seed)
    _settle(read, roles)
    files = [printable(str(source.path)) for source, _, _ in in_order if source.use in _HARMLESS_USES]
    if files:
        _require_enough(read, roles, files)
    return Ingested(_origins(read), _corpus(read, roles, tokenizer))


def _read(sources: Iterable[tuple[Source, int, int | None]], known: Known) -> _Read:
    read = _Read({name: [] for name in ORIGINS.schema.names}, [], {use: {} for use in _USES}, {}, {}, {})
    for source, start, stop in sources:
        for row in read_rows(source, start, stop):
            text, status = check(row.prompt) if row.problem is None else (None, row.problem)
            entry = {
                "source": source.name,
                "source_row": row.source_row,
                "prompt_id": None if text is None else _claim(read, known, source.use, text, row),
                "external_id": row.external_id,
                "labels": list(row.labels.items()) if source.labels else None,
                "status": status,
                "reason": None if status is Status.OK else row.detail or status.describe(),
            }
            for name, value in entry.items():
                read.rows[name].append(value)
            read.uses.append(source.use)
    return read


def _claim(read: _Read, known: Known, use: str, text: str, row: Row) -> str:
    """Note that `use` asks for the prompt, and return its id."""
    name = prompt_id(text)
    read.asked[use].setdefault(name)
    if name not in read.families:
        read.families[name], read.styles[name] = family_id(text, row.family), row.style
        if name not in known.prompts:
            read.texts[name] = text
    return name


def _assign_audited(read: _Read, roles: _Roles) -> None:
    for use in _AUDITED:
        for name in read.asked[use]:
            family = read.families[name]
            if roles.prompts.get(name) in HARMLESS or roles.families.get(family) in HARMLESS:
                roles.refused[use, name] = Status.IN_CALIBRATION
            elif use == "positive_control" and roles.prompts.get(name) == "audit":
                roles.refused[use, name] = Status.IN_AUDIT
            else:
                roles.prompts.setdefault(name, use)
                roles.families.setdefault(family, use)


def _assign_harmless(read: _Read, roles: _Roles, seed: int) -> None:
    left: dict[str, list[str]] = {use: [] for use in _HARMLESS_USES}
    for use, names in left.items():
        for name in read.asked[use]:
            if roles.prompts.get(name) in _AUDITED or roles.families.get(read.families[name]) in _AUDITED:
                roles.refused[use, name] = Status.IN_AUDIT
            else:
                names.append(name)
    # What an earlier call decided stands.
    role_of = _split(left, read, seed) | roles.families
    wanted = {(use, name): role_of[read.families[name]] for use, names in left.items() for name in names}
    calibrating = [name for (_, name), role in wanted.items() if role == "calibration"]
    chosen = _representatives(calibrating, read, roles, seed)
    for (use, name), role in wanted.items():
        if role == "calibration" and name not in chosen:
            roles.refused[use, name] = Status.FAMILY_REPRESENTED
        else:
            roles.prompts.setdefault(name, role)


def _split(left: dict[str, list[str]], read: _Read, seed: int) -> dict[str, str]:
    """The role of every harmless family."""
    fit, calibration, harmless = (dict.fromkeys(read.families[name] for name in left[use]) for use in _HARMLESS_USES)
    shared = [name for name in left["calibration"] if read.families[name] in fit]
    if shared:
        example = printable(read.texts.get(shared[0], shared[0]), 80)
        n = len(fit.keys() & calibration.keys())
        raise UserError(
            f'fit and calibration share {n} prompt families, for instance "{example}": '
            "take them out of one of the two files, or give one calibration.file, which is split by family"
        )
    by_hash = sorted(harmless, key=lambda family: rank_hash(seed, "split", family))
    half = (len(by_hash) + 1) // 2
    halves = dict.fromkeys(by_hash[:half], "fit") | dict.fromkeys(by_hash[half:], "calibration")
    return halves | dict.fromkeys(fit, "fit") | dict.fromkeys(calibration, "calibration")


def _representatives(names: Iterable[str], read: _Read, roles: _Roles, seed: int) -> set[str]:
    """One prompt of each family; of a family that calibrates already, only the prompt that does so."""
    members: dict[str, list[str]] = {}
    chosen = set()
    for name in names:
        if name in roles.prompts:
            chosen.add(name)
        elif read.families[name] not in roles.families:
            members.setdefault(read.families[name], []).append(name)
    return chosen | {min(group, key=lambda name: rank_hash(seed, "calibrate", name)) for group in members.values()}


def _settle(read: _Read, roles: _Roles) -> None:
    """Write the refusals into the rows; a refused row names no prompt, since the prompt is not there for its use."""
    rows = read.rows
    for i, (use, name) in enumerate(zip(read.uses, rows["prompt_id"], strict=True)):
        status = roles.refused.get((use, name))
        if status is not None:
            rows["prompt_id"][i], rows["status"][i], rows["reason"][i] = None, status, status.describe()


def _require_enough(read: _Read, roles: _Roles, files: Sequence[str]) -> None:
    held = Counter(roles.prompts.values())
    if held["fit"] >= MIN_FIT and held["calibration"] > 0:
        return
    of_rows = Counter(s for use, s in zip(read.uses, read.rows["status"], strict=True) if use in _HARMLESS_USES)
    rejected = ", ".join(f"{n} {status}" for status, n in sorted(of_rows.items()) if status != Status.OK)
    raise UserError(
        f"{' and '.join(files)}: {held['fit']} fit and {held['calibration']} calibration prompts are left of "
        f"{of_rows.total()} rows ({rejected or 'none rejected'}); at least {MIN_FIT} and 1 are needed: "
        "add harmless prompts that are not audited"
    )


def _origins(read: _Read) -> pa.Table:
    chunks = [
        {name: column[i : i + _ROWS_PER_CHUNK] for name, column in read.rows.items()}
        for i in range(0, len(read.uses), _ROWS_PER_CHUNK)
    ]
    tables = [pa.Table.from_pydict(chunk, schema=ORIGINS.schema) for chunk in chunks]
    return pa.concat_tables(tables) if tables else ORIGINS.schema.empty_table()


def _corpus(read: _Read, roles: _Roles, tokenizer: Tokenizer) -> dict[str, pa.Table]:
    fresh: dict[str, list[str]] = {role: [] for role in ROLES}
    for name, role in roles.prompts.items():
        if name in read.texts:
            fresh[role].append(name)
    return {role: _prompts(names, role, read, tokenizer) for role, names in fresh.items() if names}


def _prompts(names: Sequence[str], role: str, read: _Read, tokenizer: Tokenizer) -> pa.Table:
    tables = []
    for i in range(0, len(names), _PROMPTS_PER_BATCH):
        batch = names[i : i + _PROMPTS_PER_BATCH]
        texts = [read.texts[name] for name in batch]
        tokens = tokenizer.tokens(texts)
        columns = {
            "prompt_id": batch,
            "prompt": texts,
            "role": [role] * len(batch),
            "family_id": [read.families[name] for name in batch],
            "style": [read.styles[name] for name in batch],
            "n_tokens": [t.n_tokens for t in tokens],
            "truncated": [t.truncated for t in tokens],
            "model_input_id": [t.model_input_id for t in tokens],
            "status": [Status.OK] * len(batch),
            "reason": [None] * len(batch),
        }
        tables.append(pa.Table.from_pydict(columns, schema=CORPUS.schema))
    return pa.concat_tables(tables)
