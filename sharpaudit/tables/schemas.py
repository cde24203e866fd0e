"""The tables where stages meet: one schema and one writer each.

Every table has `status` (a value of `errors.Status`) and `reason` (null when ok). Units stand in names.
A table's version rises when a column changes its meaning, name or type; it enters the fingerprint of
the stage that writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """name: folder of the table in the run. key: columns that identify a row. stage: who writes it."""

    name: str
    stage: str
    key: tuple[str, ...]
    version: int
    schema: pa.Schema


def define(name: str, stage: str, key: tuple[str, ...], columns: dict[str, pa.DataType], version: int = 1) -> Table:
    """A table with these columns and an outcome; version rises when a column changes its meaning, name or type."""
    nullable_outcome = {"status": pa.string(), "reason": pa.string()}
    fields = [pa.field(c, t, nullable=c not in (*key, "status")) for c, t in (columns | nullable_outcome).items()]
    return Table(name, stage, key, version, schema_of(name, version, fields))


def schema_of(name: str, version: int, fields: Sequence[pa.Field]) -> pa.Schema:
    """The schema of a table's files, which say of which table and version they are."""
    return pa.schema(fields, metadata={"sharpaudit.table": name, "sharpaudit.version": str(version)})


PICTURE = {
    "image_sha256": pa.string(),
    "image_path": pa.string(),
    "image_bytes": pa.int64(),
    "width_px": pa.int32(),
    "height_px": pa.int32(),
}
"""Columns of a picture that the run keeps."""

ORIGINS = define(
    "origins",
    "ingest",
    ("source", "source_row"),
    {
        "source": pa.string(),
        "source_row": pa.int64(),
        "prompt_id": pa.string(),
        "external_id": pa.string(),
        "labels": pa.map_(pa.string(), pa.string()),
    },
)
CORPUS = define(
    "corpus",
    "ingest",
    ("prompt_id",),
    {
        "prompt_id": pa.string(),
        "prompt": pa.string(),
        "role": pa.string(),
        "family_id": pa.string(),
        "style": pa.string(),
        "n_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "model_input_id": pa.string(),
    },
    version=2,
)
UNCONDITIONAL = define(
    "fit/unconditional",
    "fit_unconditional",
    ("seed_index", "place"),
    {
        "seed_index": pa.int32(),
        "place": pa.string(),
        "x0_hat": pa.list_(pa.float32()),
        "noise_floor": pa.float64(),
        "evaluations": pa.int32(),
    },
    version=2,
)
DIFFERENCES = define(
    "fit/differences",
    "fit_differences",
    ("prompt_id", "seed_index"),
    {
        "prompt_id": pa.string(),
        "seed_index": pa.int32(),
        "difference": pa.list_(pa.float32()),
        "noise_gap": pa.float64(),
        "evaluations": pa.int32(),
    },
    version=2,
)
SUBSPACE = define(
    "fit/subspace",
    "fit_subspace",
    ("seed_index", "component"),
    {
        "seed_index": pa.int32(),
        "component": pa.int32(),
        "direction": pa.list_(pa.float32()),
        "variance_share": pa.float64(),
        "n_fit": pa.int32(),
    },
    version=2,
)
THRESHOLDS = define(
    "fit/thresholds",
    "fit_thresholds",
    ("tier",),
    {"tier": pa.int32(), "metric": pa.string(), "quantile": pa.float64(), "threshold": pa.float64(), "n": pa.int32()},
)
SCORES = define(
    "scores",
    "score",
    ("prompt_id", "tier", "metric"),
    {
        "prompt_id": pa.string(),
        "tier": pa.int32(),
        "metric": pa.string(),
        "value": pa.float64(),
        "seed_values": pa.list_(pa.float64()),
        "n_seeds": pa.int32(),
        "timestep": pa.int32(),
        "evaluations": pa.int32(),
    },
)
TRIAGE = define(
    "triage",
    "triage",
    ("prompt_id",),
    {
        "prompt_id": pa.string(),
        "role": pa.string(),
        "tier": pa.int32(),
        "metric": pa.string(),
        "value": pa.float64(),
        "p_value": pa.float64(),
        "q_value": pa.float64(),
        "calibrated_by": pa.string(),
        "flagged": pa.bool_(),
        "selected_for": pa.string(),
        "n_samples": pa.int32(),
        "stratum": pa.string(),
        "inclusion_probability": pa.float64(),
    },
    version=2,
)
SELECTION = define(
    "selection",
    "selection",
    ("prompt_id", "seed_index"),
    {"prompt_id": pa.string(), "seed_index": pa.int32(), "purpose": pa.string(), "prompt": pa.string()},
)
SAMPLES = define(
    "samples",
    "sample",
    ("sample_id",),
    {
        "sample_id": pa.string(),
        "prompt_id": pa.string(),
        "seed_index": pa.int32(),
        **PICTURE,
        "evaluations": pa.int32(),
    },
)
BANDS = define(
    "bands",
    "bands",
    ("profile",),
    {
        "profile": pa.string(),
        "index_digest": pa.string(),
        "n_samples": pa.int32(),
        "n_prompts": pa.int32(),
        "n_exceptions": pa.int32(),
        "copy_above": pa.float64(),
        "near_above": pa.float64(),
        "verified_by": pa.string(),
        "verified_above": pa.float64(),
        "search": pa.string(),
        "recall_found": pa.int32(),
        "recall_n": pa.int32(),
    },
    version=3,
)
MATCHES = define(
    "matches",
    "match",
    ("sample_id", "profile", "rank"),
    {
        "sample_id": pa.string(),
        "profile": pa.string(),
        "rank": pa.int32(),
        "prompt_id": pa.string(),
        "reference_id": pa.string(),
        "similarity": pa.float64(),
        "index_digest": pa.string(),
        "verified_by": pa.string(),
        "verified_similarity": pa.float64(),
        "band": pa.string(),
        "thumbnail_path": pa.string(),
    },
    version=2,
)
CORROBORATION = define(
    "corroboration",
    "corroborate",
    ("prompt_id",),
    {
        "prompt_id": pa.string(),
        "n_pictures": pa.int32(),
        "alike": pa.float64(),
        "background": pa.float64(),
        "sample_id": pa.string(),
        "reference_id": pa.string(),
        "agreement": pa.float64(),
        "same_share": pa.float64(),
        "plain_share": pa.float64(),
        "mirrored": pa.bool_(),
        "scale": pa.float64(),
        "left_at": pa.float64(),
        "top_at": pa.float64(),
        "cells": pa.list_(pa.int8()),
        "cells_wide": pa.int32(),
    },
)
MITIGATION = define(
    "mitigation",
    "mitigate",
    ("prompt_id", "method", "strength", "seed_index"),
    {
        "prompt_id": pa.string(),
        "method": pa.string(),
        "strength": pa.int32(),
        "setting": pa.string(),
        "seed_index": pa.int32(),
        **PICTURE,
        "reference_id": pa.string(),
        "similarity": pa.float64(),
        "verified_similarity": pa.float64(),
        "band": pa.string(),
        "thumbnail_path": pa.string(),
        "like_before": pa.float64(),
        "like_others": pa.float64(),
        "alignment": pa.float64(),
        "reached": pa.bool_(),
        "evaluations": pa.int32(),
    },
    version=2,
)
REFERENCES = define(
    "references",
    "index",
    ("reference_id",),
    {
        "reference_id": pa.string(),
        "source": pa.string(),
        "caption": pa.string(),
        "path": pa.string(),
        "image_sha256": pa.string(),
        "width_px": pa.int32(),
        "height_px": pa.int32(),
        "thumbnail": pa.binary(),
    },
)

FIT_TABLES = (UNCONDITIONAL, DIFFERENCES, SUBSPACE, THRESHOLDS)
RUN_TABLES = (ORIGINS, CORPUS, *FIT_TABLES, SCORES, TRIAGE, SELECTION, SAMPLES, BANDS, MATCHES, CORROBORATION)
OPTIONAL_TABLES = (MITIGATION,)
"""Of stages that are part of an audit where its configuration asks for them."""
ROLES = ("audit", "positive_control", "calibration", "fit")
