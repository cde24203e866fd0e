"""What lies beside a model: listed, and said where it would change the model if it were applied."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from sharpaudit.denoisers.beside import beside
from sharpaudit.denoisers.families.stable_diffusion.snapshot import WEIGHTS, model_files
from sharpaudit.denoisers.load import beside_model, model_digest
from tests.support.models import model_at
from tests.support.tiny_models import split


def look(folder):
    return beside(folder, model_files(folder))


def save(path, tensors):
    path.parent.mkdir(exist_ok=True)
    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, path, {"format": "pt"})


def test_nothing_lies_beside_a_plain_model(folders, folder):
    assert look(folders["epsilon"]) == ([], [])
    split(folder / WEIGHTS[1])
    assert look(folder) == ([], [])


def test_a_part_that_is_a_link_is_looked_through(folder, tmp_path):
    shutil.move(folder / "unet", tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    assert look(folder) == ([], [])
    save(folder / "unet" / "pytorch_lora_weights.safetensors", {"a.lora.down.weight": (2, 4)})
    assert look(folder).ignored == ["unet/pytorch_lora_weights.safetensors"]
    assert len(look(folder).not_applied) == 1


def test_all_that_is_not_read_is_listed_and_changes_no_digest(folder):
    before = model_digest(model_at(folder))
    for name in ("README.md", "unet/diffusion_pytorch_model.bin", "text_encoder/model.onnx"):
        (folder / name).write_text("")
    shutil.copy(folder / WEIGHTS[1], folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    for name in ("safety_checker/config.json", "safety_checker/model.safetensors", "feature_extractor/x.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    (folder / "unet" / "older").mkdir()
    (folder / "unet" / "older" / "config.json").write_text("")
    (folder / "runs").symlink_to(folder.parent)
    assert look(folder) == (
        [
            "README.md",
            "feature_extractor/ (1 file)",
            "runs/ (a link)",
            "safety_checker/ (2 files)",
            "text_encoder/model.onnx",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "unet/older/config.json",
        ],
        [],
    )
    assert beside_model(model_at(folder)) == look(folder)
    assert model_digest(model_at(folder)) == before


@pytest.mark.parametrize(
    ("name", "tensors", "kind"),
    [
        ("pytorch_lora_weights.safetensors", {"unet.a.lora.down.weight": (2, 4)}, "a LoRA"),
        ("style.safetensors", {"lora_unet_a.lora_up.weight": (4, 2), "lora_unet_a.alpha": ()}, "a LoRA"),
        ("loras/style.safetensors", {"base_model.model.a.lora_A.weight": (2, 4)}, "a LoRA"),
        ("unet/pytorch_lora_weights.bin", None, "a LoRA"),
        ("adapter_model.safetensors", {"base_model.a": (2, 4, 1)}, "a LoRA"),
        ("learned_embeds.safetensors", {"<sks>": (1, 16)}, "a textual inversion"),
        ("learned_embeds.bin", None, "a textual inversion"),
        ("tokenizer/sks.safetensors", {"emb_params": (2, 16)}, "a textual inversion"),
        ("embeddings/sks.pt", None, "a textual inversion"),
    ],
)
def test_what_is_not_applied_is_said(folder, name, tensors, kind):
    if tensors is None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never read")
    else:
        save(folder / name, tensors)
    assert look(folder).not_applied == [f"{name} is {kind} and not applied: the audit is of the model without it"]


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("exploration.safetensors", {"deploration.weight": (4, 4, 3, 3)}),
        ("v1-5-pruned.safetensors", {"model.diffusion_model.in.weight": (4, 4, 3, 3), "a": (1,), "b": (1,)}),
        ("safety_checker/model.safetensors", {"concept_embeds": (17, 4), "a": (4, 4), "b": (4,)}),
        ("unet/diffusion_pytorch_model.fp16.safetensors", {"conv_in.weight": (4, 4, 3, 3)}),
    ],
)
def test_other_weights_are_only_listed(folder, name, tensors):
    save(folder / name, tensors)
    assert look(folder).not_applied == []
    assert len(look(folder).ignored) == 1


def test_a_folder_that_cannot_be_listed_is_still_named(folder, monkeypatch):
    (folder / "private").mkdir()

    def walk(top, *given, **options):
        assert os.fspath(top).startswith(os.fspath(folder))
        return iter(()) if os.fspath(top).endswith("private") else real(top, *given, **options)

    real = os.walk
    monkeypatch.setattr(os, "walk", walk)
    assert look(folder).ignored == ["private/ (0 files)"]
