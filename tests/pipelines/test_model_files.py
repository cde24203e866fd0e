"""What an audit says of a model's folder: which files it read, which not, and what is not applied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.audit import run_audit
from pipelines.flow.progress import Reporter
from pipelines.operations.validate import validate
from sharpaudit.config import load
from sharpaudit.errors import UserError
from tests.support.real_audits import write_audit
from tests.support.tiny_models import split

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """The configuration of an audit whose model lies in `model`."""
    return write_audit(tmp_path, "epsilon")


def test_validate_lists_what_is_read_and_what_is_not(audit: Path) -> None:
    model = audit.parent / "model"
    (model / UNET).rename((model / UNET).with_suffix(".fp16.safetensors"))
    (model / "unet" / "diffusion_pytorch_model.bin").write_text("")
    shutil.copytree(model / "vae", model / "safety_checker")
    save_file({"unet.a.lora.down.weight": torch.zeros(2, 2)}, model / "pytorch_lora_weights.safetensors")
    lines = list(validate(load(audit), 0.0))
    (read,) = [line for line in lines if line.startswith("model: read and hashed: ")]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in read
    assert "model: not read: pytorch_lora_weights.safetensors, safety_checker/ (2 files), " in "\n".join(lines)
    assert "unet/diffusion_pytorch_model.bin" in "\n".join(lines)
    assert (
        "note: pytorch_lora_weights.safetensors is a LoRA and not applied: the audit is of the model without it"
        in lines
    )


def test_a_run_records_the_files_that_were_hashed_and_notes_what_is_not_applied(audit: Path, tmp_path: Path) -> None:
    model = audit.parent / "model"
    index = split(model / UNET)
    (model / "learned_embeds.bin").write_bytes(b"never read")
    said: list[str] = []
    reporter = Reporter(tmp_path / "run")
    reporter.say = said.append  # type: ignore[method-assign]
    run_audit(load(audit), tmp_path / "run", until="fit_unconditional", reporter=reporter)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["facts"]["model_files"]
    assert f"unet/{index.name}" in recorded
    assert len([name for name in recorded if name.startswith("unet/diffusion")]) == 3
    assert [line for line in said if line.startswith("note: learned_embeds.bin is a textual inversion and not applied")]


def test_a_token_without_an_embedding_is_found_before_a_prompt_is_read(audit: Path, tmp_path: Path) -> None:
    vocabulary = audit.parent / "model" / "tokenizer" / "vocab.json"
    vocabulary.write_text(json.dumps(json.loads(vocabulary.read_text()) | {"dog</w>": 9999}))
    said = "gives 'dog</w>' the id 9999, the text encoder has embeddings for ids below 516"
    with pytest.raises(UserError, match=said):
        next(validate(load(audit), 0.0))
    with pytest.raises(UserError, match=said):
        run_audit(load(audit), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.parquet"))
