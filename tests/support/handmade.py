"""A run's tables, made by hand: every count, band and picture in them is known, so the report has an oracle.

Two pictures a prompt. Audited prompts a0..a9: a0 and a1 flagged, of which a0 copies; a2..a5 controls, of which a5
copies; a6..a8 unselected, a9 without a score. Calibration c0..c98, fit f0 and f1 (band; f0 sets the line at .8), one
positive control.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sharpaudit.images import encode_png
from sharpaudit.tables.image_store import ImageStore
from sharpaudit.tables.schemas import RUN_TABLES

Rows = dict[str, list[dict[str, Any]]]
OK = {"status": "ok"}
ROLE = {"a": "audit", "c": "calibration", "f": "fit", "k": "positive_control"}
SELECTED = {
    "a0": "flagged",
    "a1": "flagged",
    "a2": "control",
    "a3": "control",
    "a4": "control",
    "a5": "control",
    "f0": "band",
    "f1": "band",
    "k0": "positive_control",
}
REACHED = {"a0": 0.99, "a5": 0.9, "k0": 0.95, "f0": 0.8}
"""By the second picture; the others reach .5."""
IDS = [f"a{i}" for i in range(10)] + [f"c{i}" for i in range(99)] + ["f0", "f1", "k0"]


def _value(prompt_id: str) -> float | None:
    role, number = prompt_id[0], int(prompt_id[1:])
    if prompt_id == "a9" or role == "f":
        return None
    if role == "c":
        return 1.0 + number / 100
    return 5.0 - number if number < 2 else 1.5 - number / 100


def _triage(prompt_id: str) -> dict[str, Any]:
    value, role = _value(prompt_id), ROLE[prompt_id[0]]
    decided = value is not None and role in ("audit", "positive_control")
    p = (1 + sum(1.0 + i / 100 >= value for i in range(99))) / 100 if decided and value is not None else None
    selected = SELECTED.get(prompt_id, "none")
    row = {"prompt_id": prompt_id, "role": role, "metric": "gap@1", "tier": 1, "value": value, "p_value": p}
    row |= {"flagged": p is not None and p <= 0.01, "selected_for": selected, "n_samples": 2 * (selected != "none")}
    row["calibrated_by"] = "all" if decided or role == "calibration" else None
    row["stratum"] = "0.5<p<=1" if role == "audit" and p is not None and p > 0.01 else None
    return row | (OK if value is not None or role == "fit" else {"status": "non_finite", "reason": "NaN"})


def make_rows(root: Path) -> Rows:
    """The rows of every table; pictures are stored below `root`."""
    rows: Rows = {table.name: [] for table in RUN_TABLES}
    rows["origins"] = [
        {"source": f"{ROLE[i[0]]}:p.csv", "source_row": n, "prompt_id": i, "external_id": f"row-{i}"} | OK
        for n, i in enumerate([*IDS, "a0"])
    ]
    rows["origins"].append({"source": "audit:p.csv", "source_row": 999, "status": "empty", "reason": "blank"})
    rows["corpus"] = [
        {"prompt_id": i, "prompt": f"prompt {i}", "role": ROLE[i[0]], "family_id": i, "model_input_id": i} | OK
        for i in IDS
    ]
    rows["triage"] = [_triage(i) for i in IDS]
    rows["scores"] = [
        {"prompt_id": i, "tier": 1, "metric": "gap@1", "value": _value(i), "seed_values": [1.0]}
        | (OK if i != "a9" else {"status": "non_finite", "reason": "NaN"})
        for i in IDS
        if i[0] != "f"
    ]
    rows["fit/unconditional"] = [
        {"seed_index": 0, "place": "first", "x0_hat": [0.0], "noise_floor": 0.001, "evaluations": 1} | OK
    ]
    rows["bands"] = [
        {"profile": "px", "n_samples": 4, "n_prompts": 2, "n_exceptions": 0, "copy_above": 0.8, "near_above": 0.7} | OK
    ]
    for prompt_id in SELECTED:
        for seed in (0, 1):
            _add_sample(rows, root, prompt_id, seed)
    return rows


def _add_sample(rows: Rows, root: Path, prompt_id: str, seed: int) -> None:
    shade = (IDS.index(prompt_id) * 2 + seed) % 256
    with ImageStore(root) as store:
        path = store.put(encode_png(np.full((8, 8, 3), shade, np.uint8)))
        thumbnail = store.put(encode_png(np.full((6, 6, 3), shade, np.uint8)))
    sample = {"sample_id": f"s-{prompt_id}-{seed}", "prompt_id": prompt_id}
    rows["samples"].append(
        sample | {"seed_index": seed, "image_sha256": Path(path).stem, "image_path": path, "evaluations": 20} | OK
    )
    similarity = REACHED.get(prompt_id, 0.5) if seed == 1 else 0.4
    band = "copy" if similarity > 0.8 else "near" if similarity >= 0.7 else "none"
    match = {"profile": "px", "rank": 1, "reference_id": f"r-{prompt_id}-{seed}", "similarity": similarity}
    rows["matches"].append(sample | match | {"band": band, "thumbnail_path": thumbnail} | OK)


def told(show_images: bool = False, max_findings: int = 200) -> dict[str, Any]:
    """What the driver says of the run."""
    return {
        "name": "by hand",
        "created": "2026-01-01T00:00:00Z",
        "sharpaudit_version": "1",
        "model": {"source": "m", "digest": "d" * 64, "dtype": "float32", "device": "cpu"},
        "settings": {
            "seed": 0,
            "scores": {"metrics": ["residual_gap", "noise_gap", "sharpness"], "n_seeds": 1, "then": []},
            "triage": {"flag_by": "p", "alpha": 0.01, "q": 0.1, "procedure": "benjamini-hochberg"},
            "samples": {"solver": "ddim", "steps": 10, "guidance": 5.0, "per_prompt": 2},
            "matches": {"index": "/a/place/of/this/machine", "neighbours": 3},
            "report": {"show_images": show_images, "max_findings": max_findings},
        },
        "inputs": [{"use": "audit", "source": "audit:p.csv", "rows": 12, "sha256": "e" * 64}],
        "index": {
            "pictures": 3,
            "profile": "px",
            "given": False,
            "verified_by": None,
            "weights": {},
            "digest": "f" * 64,
        },
        "hardware": {
            "cpu": "x",
            "cpu_has_bf16": True,
            "cores": 2,
            "memory_bytes": 3 * 2**29,
            "devices": ["y"],
            "torch": "2",
        },
        "quarantined": [],
        "command": "sharpaudit run x.toml",
        "folder": "x",
        "replay": "sharpaudit replay x",
    }
