"""A model that fails for some prompts, a device that is too small, prompts that the model cannot tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharpaudit.denoisers.base import Conditioning, Prediction
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser
from sharpaudit.samples.generate import Generator
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RunFolder
from tests.support.audits import audit, tables

REAL = GaussianDenoiser.predict


def by_prompt(root: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in tables(root)[name]:
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def test_a_prompt_whose_output_is_not_a_number_is_a_counted_row_and_no_other_moves(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The most memorised prompt by score: were its NaN ranked, it would top every list.
    triaged = [row for row in tables(clean)["triage"] if row["role"] == "audit"]
    worst = max(triaged, key=lambda row: row["value"])["prompt_id"]
    prompt = next(row["prompt"] for row in tables(clean)["corpus"] if row["prompt_id"] == worst)
    mark = GaussianDenoiser.encode

    def encode(self: GaussianDenoiser, prompts: Any) -> Conditioning:
        made = mark(self, prompts)
        spoiled = torch.tensor([float("nan") if p == prompt else 0.0 for p in prompts], dtype=torch.float64)
        return Conditioning(made.tensors | {"means": made.tensors["means"] + spoiled[:, None, None]})

    monkeypatch.setattr(GaussianDenoiser, "encode", encode)
    outcome = audit(config_path, tmp_path / "run")
    scores, before = by_prompt(tmp_path / "run", "scores"), by_prompt(clean, "scores")
    assert {row["status"] for row in scores[worst]} == {"non_finite"}
    assert all(row["value"] is None for row in scores[worst])
    assert {p: rows for p, rows in scores.items() if p != worst} == {p: r for p, r in before.items() if p != worst}
    decided = by_prompt(tmp_path / "run", "triage")[worst][0]
    assert (decided["status"], decided["p_value"], decided["flagged"]) == ("non_finite", None, False)
    assert decided["selected_for"] == "none"
    assert outcome.facts["reconciles"]
    assert {"non_finite"} == {row["status"] for row in outcome.facts["exclusions"]}


def test_a_sample_of_one_colour_is_a_counted_row_and_no_other_match_moves(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no descriptor, as its length would be zero: it must not reach the search."""
    before = {row["sample_id"]: row for row in tables(clean)["matches"]}
    keys = {row["sample_id"]: (row["prompt_id"], row["seed_index"]) for row in tables(clean)["samples"]}
    chosen = next(i for i in keys if i in before)
    made = Generator.pictures

    def grey(self: Generator, prompts: Any, wanted: list[tuple[str, int]]) -> list[Any]:
        pictures = made(self, prompts, wanted)
        return [
            np.full_like(picture, 128) if key == keys[chosen] else picture
            for picture, key in zip(pictures, wanted, strict=True)
        ]

    monkeypatch.setattr(Generator, "pictures", grey)
    outcome = audit(config_path, tmp_path / "run")
    after = {row["sample_id"]: row for row in tables(tmp_path / "run")["matches"]}
    lost = after.pop(chosen)
    assert (lost["status"], lost["reference_id"], lost["similarity"]) == ("no_descriptor", None, None)
    assert before.pop(chosen)["status"] == "ok"
    assert after == before
    assert outcome.facts["reconciles"]


def test_a_device_that_holds_few_rows_gives_the_same_tables(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(
        self: GaussianDenoiser, x: torch.Tensor, t: int, conditioning: Conditioning, *, record: None = None
    ) -> Prediction:
        # The unconditional prediction and the noise floor are made before any prompt, in a batch as asked for.
        if 6 < len(x) != 32:
            raise torch.OutOfMemoryError("injected")
        return REAL(self, x, t, conditioning)

    monkeypatch.setattr(GaussianDenoiser, "predict", small)
    audit(config_path, tmp_path / "run", "run.rows_per_shard=31")
    assert tables(tmp_path / "run") == tables(clean)


def test_a_prompt_that_does_not_fit_alone_is_rejected_and_the_others_go_on(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tables(clean)["corpus"]
    big = next(row for row in corpus if row["role"] == "audit")
    encode = GaussianDenoiser.encode

    def too_big(self: GaussianDenoiser, prompts: Any) -> Conditioning:
        if big["prompt"] in prompts:
            raise torch.OutOfMemoryError("injected")
        return encode(self, prompts)

    monkeypatch.setattr(GaussianDenoiser, "encode", too_big)
    outcome = audit(config_path, tmp_path / "run")
    lost = [row for row in tables(tmp_path / "run")["triage"] if row["status"] != "ok"]
    assert [(row["prompt_id"], row["status"]) for row in lost] == [(big["prompt_id"], "out_of_memory")]
    assert outcome.facts["reconciles"]


def test_prompts_beyond_the_encoders_limit_are_marked_and_equal_ones_are_said(
    config_path: Path, tmp_path: Path
) -> None:
    long = [" ".join(f"w{i}" for i in range(n)) for n in (76, 77, 78, 500)]
    corpus = tmp_path / "audit.csv"
    corpus.write_text("\n".join(["id,prompt", *(f"{i},{prompt}" for i, prompt in enumerate(long))]) + "\n")
    outcome = audit(config_path, tmp_path / "run", f"corpus.audit={corpus}")
    rows = {row["n_tokens"]: row for row in tables(tmp_path / "run")["corpus"] if row["role"] == "audit"}
    assert {n: row["truncated"] for n, row in rows.items()} == {76: False, 77: False, 78: True, 500: True}
    assert (outcome.facts["truncated"], outcome.facts["indistinguishable"]) == (2, 3)
    with open_connection(RunFolder.open(tmp_path / "run")) as connection:
        groups = connection.sql("select prompt_ids from indistinguishable").fetchall()
    assert [set(row[0]) for row in groups] == [{rows[n]["prompt_id"] for n in (77, 78, 500)}]
    values = [by_prompt(tmp_path / "run", "triage")[rows[n]["prompt_id"]][0]["value"] for n in (77, 78, 500)]
    assert len(set(values)) == 1
