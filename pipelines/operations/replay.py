"""One prompt's samples, made and matched again: what a reader of the report does to check a finding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.flow.identity import identities, inputs_of
from pipelines.operations import older
from pipelines.stages.base import Inputs
from pipelines.stages.inputs import hashed_for, index_of, second_of, structure_of
from pipelines.stages.search import SampleSearch
from sharpaudit.config import AuditConfig, MitigationConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import encode_png
from sharpaudit.samples.generate import Generator
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RunFolder, changes

OUTSIDE = ("model_digest", "tokenizer_digest", "index_digest", "device", "dtype")
TOLERANCE = 1e-4
"""Difference of similarities that other batches and threads may bring for a network."""


@dataclass(frozen=True)
class Replay:
    """lines: one a sample. same: every sample reaches the same training picture at the same similarity."""

    lines: list[str]
    same: bool


def replay_prompt(root: Path, prompt_id: str) -> Replay:
    """Replay a prompt. Raises UserError for an unknown one, or where model or index are not those of the run."""
    run = RunFolder.open(root)
    config = run.config()
    inputs = require_same(run, config)
    rows = _recorded(run, prompt_id)
    known = hashed_for(inputs)
    index = index_of(config, known)
    lines, same = [], True
    search = SampleSearch.of(index, second_of(index, config), structure_of(index, config, known), config)
    for row, picture in zip(rows, _generate(config, rows), strict=True):
        if isinstance(picture, Status):
            lines.append(f"seed {row['seed_index']}: {picture.describe()}")
            same = same and row["status"] == picture
            continue
        found = search.nearest([picture], config.matches.neighbours)[0]
        identical = hashlib.sha256(encode_png(picture)).hexdigest() == row["image_sha256"]
        if isinstance(found, Status):
            lines.append(f"seed {row['seed_index']}: {found.describe()}")
            same = same and row["similarity"] is None
            continue
        # The match that decided may be any of the neighbours, where a second instrument verifies.
        neighbour = next((n for n in found if n.reference_id == row["reference_id"]), found[0])
        agrees = _alike(neighbour.similarity, row["similarity"]) and _alike(
            neighbour.verified, row["verified_similarity"]
        )
        same = same and agrees and neighbour.reference_id == row["reference_id"]
        lines.append(
            f"seed {row['seed_index']}: {printable(neighbour.reference_id)} at {neighbour.similarity:.6f}, recorded "
            f"{row['similarity']}; the picture is {'the same byte for byte' if identical else 'not the same bytes'}"
        )
    return Replay([*lines, "reproduced" if same else "NOT reproduced"], same)


def _alike(found: float | None, recorded: float | None) -> bool:
    if found is None or recorded is None:
        return found is recorded
    return abs(found - recorded) <= TOLERANCE


def require_same(run: RunFolder, config: AuditConfig) -> Inputs:
    """Refuse a model, an index or a machine that is not what the run was made with, and of this version other settings.

    Settings and stages of another version may be called otherwise: whether the pictures are made again shows by itself.
    """
    # What is tried against findings makes no picture of theirs, and its embedder need not be here.
    config = config.model_copy(update={"mitigation": MitigationConfig()})
    record, found = run.record() or {}, inputs_of(config, alone=True)
    if older.maker(run) is None:
        changed = changes(record, identities(config, found, run.earlier()))
        other = [name for change in changed[:1] for name in change.fields or [change.stage]]
    else:
        other = [name for name in OUTSIDE if record["facts"][name] != getattr(found, name)]
    if other:
        raise UserError(f"{run.root}: {', '.join(other)} is not what this run was made with")
    return found


def _recorded(run: RunFolder, prompt_id: str) -> list[dict[str, Any]]:
    """The run's samples of a prompt with their best match."""
    sql = (
        "SELECT c.prompt, s.*, m.similarity, m.verified_similarity, m.reference_id "
        "FROM samples s JOIN corpus c USING (prompt_id) LEFT JOIN judged m ON m.sample_id = s.sample_id "
        "WHERE s.prompt_id = $id ORDER BY s.seed_index"
    )
    with open_connection(run) as connection:
        relation = connection.sql(sql, params={"id": prompt_id})
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    if not rows:
        raise UserError(f"{printable(prompt_id)}: the run holds no sample of this prompt; take an id from findings.csv")
    return rows


def _generate(config: AuditConfig, rows: list[dict[str, Any]]) -> list[Any]:
    generator = Generator.of(config, load_denoiser(config.model))
    return generator.pictures([row["prompt"] for row in rows], [(row["prompt_id"], row["seed_index"]) for row in rows])
