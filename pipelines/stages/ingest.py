"""Ingest: prompt files to `origins` (one row per source row) and `corpus` (one row per distinct prompt).

The driver does it: roles, families and duplicates need to see every row, which lie on disk meanwhile. Shards are cut
once, hold one role, and are named by their content, so what is downstream of a shard never changes. A larger `limit`
reads on where the last ingest stopped and adds shards; nothing is rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.stages.base import Inputs, of_plugs
from pipelines.stages.calibration import ONE_STYLE, allowed
from sharpaudit.config import AuditConfig
from sharpaudit.corpus.assign import Ingested, assign
from sharpaudit.corpus.files import files_of, format_of, names_of
from sharpaudit.corpus.rows import Source, count_and_hash
from sharpaudit.corpus.scratch import scratch
from sharpaudit.denoisers.base import Tokenizer
from sharpaudit.errors import Status, UserError
from sharpaudit.plugs import FAMILIES, FORMATS, foreign
from sharpaudit.tables.files import IN_PROGRESS
from sharpaudit.tables.runs import Identity, RunFolder
from sharpaudit.tables.schemas import CORPUS, ORIGINS
from sharpaudit.tables.shards import TableCommit, TableFolder, keys_digest

NAME = "ingest"
LEAST_ROWS, MOST_SHARDS = 256, 200
WORKPLACE = f".ingest{IN_PROGRESS}"
"""Folder of the run for what is read and not yet decided; gone when ingest ends."""


def identity(inputs: Inputs) -> Identity:
    """What determines a corpus row given its prompt."""
    versions = {table.name: table.version for table in (ORIGINS, CORPUS)}
    fields = {"tokenizer digest": inputs.tokenizer_digest} | of_plugs(inputs, (FAMILIES.kind,))
    return Identity(NAME, fields, versions, {})


def sources(config: AuditConfig, named: Mapping[tuple[str, str], str] | None = None) -> list[Source]:
    """The input files, in the order in which they claim prompts.

    A file is named by the last part of its path, one of a folder or pattern by the last two, and where that leaves two
    of one use alike, by as many as tell them apart. named: what files are called, by (use, path), in a run that has
    begun; they keep it when others of their name come.
    """
    corpus, calibration = config.corpus, config.calibration
    uses = {
        "audit": corpus.audit,
        "positive_control": (corpus.positive_controls,),
        "fit": (calibration.fit,),
        "calibration": (calibration.calibrate,),
        "harmless": (calibration.file,),
    }
    return [
        source
        for use, paths in uses.items()
        for source in _sources(config, use, [Path(path) for path in paths if path is not None], named or {})
    ]


def _sources(config: AuditConfig, use: Any, paths: list[Path], named: Mapping[tuple[str, str], str]) -> list[Source]:
    """The files of one use. Raises UserError for one that stands there twice."""
    found = {path: files_of(path) for path in paths}
    shards = {path: place for place, files in found.items() for path in files if path != place}
    files = [path for listed in found.values() for path in listed]
    names_of([(path, 1) for path in files])
    told = {path: name for path in files if (name := named.get((use, str(path)))) is not None}
    new = [(path, 2 if path in shards else 1) for path in files if path not in told]
    taken = [name.removeprefix(f"{use}:") for name in told.values()]
    names = told | {path: f"{use}:{name}" for (path, _), name in zip(new, names_of(new, taken), strict=True)}
    audited = use in ("audit", "positive_control")
    corpus, calibration = config.corpus, config.calibration
    how: dict[str, Any] = {
        "column": corpus.column if audited else calibration.column or corpus.column,
        "delimiter": corpus.delimiter if audited else calibration.delimiter or corpus.delimiter,
        "id_column": corpus.id_column if audited else None,
        "family_column": corpus.family_column if audited else calibration.family_column or corpus.family_column,
        "style_column": corpus.style_column if audited else calibration.style_column or corpus.style_column,
        "labels": corpus.labels if audited else (),
    }
    return [Source(names[path], use, path, is_shard=path in shards, **how) for path in files]


def formats(config: AuditConfig) -> list[str]:
    """The names of the formats of the input files (plugs.FORMATS), each once."""
    return sorted({format_of(source.path).name for source in sources(config)})


def inspect(config: AuditConfig, before: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Name, place, size and SHA-256 of every input file, for inputs.json, and whose format reads it if not ours.

    Raises UserError for a missing one.

    before: the record of a run that has begun.
    """
    found = []
    for source in sources(config, names_in(before)):
        sha256, size = count_and_hash(source.path)
        entry = {"source": source.name, "use": source.use, "path": str(source.path), "sha256": sha256, "bytes": size}
        read_by = foreign([(FORMATS, format_of(source.path).name)])
        found.append(entry | ({"format": read_by[0]} if read_by else {}))
    return found


def names_in(record: Mapping[str, Any] | None) -> dict[tuple[str, str], str]:
    """What a run calls its input files, by use and path."""
    return {(entry["use"], entry["path"]): entry["source"] for entry in (record or {}).get("inputs", ())}


def rows_read(run: RunFolder) -> dict[str, int]:
    """Source rows read so far, by source."""
    commit = run.table(ORIGINS).table_commit()
    return dict(commit.extra["read"]) if commit else {}


def ingest(run: RunFolder, config: AuditConfig, tokenizer: Tokenizer) -> int:
    """Read what is not read yet and return the number of source rows added."""
    origins, corpus = run.table(ORIGINS), run.table(CORPUS)
    before = origins.table_commit() or TableCommit([], extra={"read": {}, "whole": []})
    done: dict[str, int] = before.extra["read"]
    todo = [
        (source, done.get(source.name, 0), _stop(source, config))
        for source in sources(config, names_in(run.record()))
        if source.name not in before.extra["whole"]
    ]
    todo = [entry for entry in todo if entry[2] is None or entry[2] > entry[1]]
    if not todo:
        return 0
    near = config.corpus.near_duplicates
    with scratch(run.root / WORKPLACE) as rows:
        stood_for = [(family, prompt) for family, prompt in before.extra.get("represented", [])]
        made = assign(todo, _known(corpus), tokenizer, 0, rows, near, stood_for)
        require_audited(made, config, first=not corpus.current())
        if not corpus.current():
            # Too few calibration prompts: said before anything is committed that more of them would not join.
            audited = made.styles("audit") if config.corpus.style_column else ONE_STYLE
            allowed(config, made.styles("calibration"), audited)
        size = config.run.rows_per_shard
        sizes = {role: size or rows_per_shard(n) for role, n in made.counts.items()}
        parts = ((role, part) for role in made.counts for part in made.corpus(role, sizes[role]))
        numbered = enumerate(parts, len(corpus.current()))
        shards = [_commit(corpus, f"{role}-{i:05d}", part, {"role": role}) for i, (role, part) in numbered]
        listed = [manifest.shard for manifest in corpus.current()]
        all_rows = enumerate(made.origins(size or rows_per_shard(made.n_rows)), len(before.shards))
        of_origins = [_commit(origins, f"rows-{i:05d}", part, {}) for i, part in all_rows]
        here = made.represented()
        read = done | {name: done.get(name, 0) + n for name, n in made.rows_of_sources().items()}
    # The corpus first: origins records how far the files are read, so a kill in between repeats the reading.
    corpus.commit_table(TableCommit([*listed, *(s for s in shards if s not in listed)]))
    progress: dict[str, Any] = {"read": read, "whole": [*before.extra["whole"], *_ended(todo, read)]}
    if near is not None:
        # Nobody else knows them, and what is like them may not be audited either.
        progress["represented"] = sorted({*stood_for, *here})
    origins.commit_table(TableCommit([*before.shards, *of_origins], extra=progress))
    return made.n_rows


def rows_per_shard(n_rows: int) -> int:
    """Rows of a shard where the configuration names none: few are lost with a worker, and a folder's files stay few.

    It depends on nothing but the rows: another machine with other workers must cut the same shards.
    """
    return max(LEAST_ROWS, math.ceil(n_rows / MOST_SHARDS))


def require_audited(made: Ingested, config: AuditConfig, *, first: bool = True) -> None:
    """Refuse a corpus of which no row can be audited, with a UserError that says why. first: whether nothing of it was
    read before."""
    ended = made.statuses(["audit"])
    if Status.OK not in ended and (ended or first):
        reasons = ", ".join(f"{n} {status}" for status, n in sorted(ended.items())) or "there is none"
        fix = "; if they are in Latin-1 or Windows-1252, save them as UTF-8" if Status.INVALID_UTF8 in ended else ""
        raise UserError(f"{', '.join(config.corpus.audit)}: no row holds a prompt that can be audited ({reasons}){fix}")


def _stop(source: Source, config: AuditConfig) -> int | None:
    return config.run.limit if source.use == "audit" else None


def _ended(todo: Sequence[tuple[Source, int, int | None]], read: dict[str, int]) -> list[str]:
    """The sources that gave fewer rows than they were asked for: they are read to their end."""
    return [source.name for source, _, stop in todo if stop is None or read.get(source.name, 0) < stop]


def _known(corpus: TableFolder) -> Iterator[pa.Table]:
    """The prompts of earlier calls, a shard at a time."""
    columns = ["prompt_id", "family_id", "role", "prompt"]
    for manifest in corpus.current():
        rows = corpus.read(manifest, columns)
        yield rows.set_column(3, "prompt", rows["prompt"].cast(pa.binary()))


def _commit(folder: TableFolder, name: str, rows: pa.Table, about: Mapping[str, str]) -> str:
    """Commit under a name that holds the digest of the keys, so another cut can never meet this one."""
    digest = keys_digest(rows, folder.table.key)
    shard = f"{name}-{digest[:8]}"
    if folder.manifest(shard) is None:
        folder.commit(shard, rows, input_digest=digest, about=about)
    return shard
