"""What is loaded is what was hashed: nothing else is opened, dropped, added or looked up."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionTokenizer
from sharpaudit.denoisers.families.stable_diffusion.snapshot import INDEX, WEIGHTS, digest, model_files
from sharpaudit.denoisers.load import load_denoiser, load_tokenizer
from sharpaudit.errors import UserError
from tests.support.models import model_at
from tests.support.opened import opened_below
from tests.support.tiny_models import assert_same_network, edit_json, edit_weights, open_model, split, states

TEXT, UNET, VAE = WEIGHTS
NAMES_OF_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def litter(folder):
    """A file at every place where a loader of some version looks, each unfit to be read."""
    for part in ("tokenizer", "text_encoder", "unet", "vae", "scheduler", "."):
        for name in (
            "adapter_model.safetensors",
            "chat_template.jinja",
            "config.json",
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.bin.index.json",
            "diffusion_pytorch_model.fp16.safetensors",
            "flax_model.msgpack",
            "generation_config.json",
            "model.fp16.safetensors",
            "model.gguf",
            "model.onnx",
            "preprocessor_config.json",
            "pytorch_lora_weights.safetensors",
            "pytorch_model.bin",
            "quantization_config.json",
            "scheduler_config.json",
            "special_tokens_map.json.bak",
            "tokenizer.4.0.json",
        ):
            if not (folder / part / name).exists():
                (folder / part / name).write_text("not to be read")
    for place in ("safety_checker", "feature_extractor", "unet/checkpoint", "tokenizer/additional_chat_templates"):
        (folder / place).mkdir()
        (folder / place / "default.jinja").write_text("not to be read")
        shutil.copy(folder / "unet" / "config.json", folder / place / "config.json")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel by inotify")
@pytest.mark.parametrize("kind", ["plain", "shards", "variant", "tokenizer.json"])
def test_loading_opens_the_hashed_files_and_no_others(folder, kind):
    if kind == "shards":
        for name in WEIGHTS:
            split(folder / name)
    if kind == "variant":
        (folder / UNET).rename(folder / UNET.replace(".safetensors", ".fp32.safetensors"))
    if kind == "tokenizer.json":
        DiffusionTokenizer(folder)._tokenizer.save_pretrained(folder / "tokenizer")
        edit_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=16)
    litter(folder)
    (folder / UNET).with_suffix(".fp16.safetensors").unlink()
    with opened_below(folder) as opened:
        open_model(folder)
    assert {path.relative_to(folder).as_posix() for path in opened} == {INDEX, *model_files(folder)}


def test_loading_says_nothing(folder, capfd):
    open_model(folder)
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_nothing_in_the_temporary_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    open_model(folder)
    edit_json(folder / "unet" / "config.json", act_fn="other")
    with pytest.raises(UserError) as caught:
        open_model(folder)
    assert "sharpaudit-model-" not in str(caught.value)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_cache_of_links_is_a_model(folder, whole, tmp_path):
    """As the hub's cache is: a folder of links to files that are named by their content."""
    blobs, plain = tmp_path / "blobs", digest(folder, model_files(folder))
    blobs.mkdir()
    for i, name in enumerate([INDEX, *model_files(folder)]):
        shutil.move(folder / name, blobs / str(i))
        (folder / name).symlink_to(os.path.relpath(blobs / str(i), (folder / name).parent))
    assert digest(folder, model_files(folder)) == plain
    assert_same_network(folder, whole)


def as_of_old(folder):
    """A text encoder as Stable Diffusion 1 was published with: another prefix, and its position ids."""
    tensors = load_file(folder / TEXT)
    old = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in tensors.items()}
    save_file(old | {"text_model.embeddings.position_ids": torch.arange(16)[None]}, folder / TEXT, {"format": "pt"})


@pytest.mark.parametrize("shards", [False, True])
def test_text_encoders_of_old_are_read(folder, whole, shards):
    as_of_old(folder)
    if shards:
        split(folder / TEXT)
    assert_same_network(folder, whole)


@pytest.mark.parametrize("kept", [torch.float32, torch.float16, torch.float64])
def test_a_file_of_mixed_precision_becomes_a_network_of_one(folder, kept):
    """Where the first tensor has the network's type, a loader takes all of them as they are."""
    for name in WEIGHTS:
        tensors = load_file(folder / name)
        mixed = {key: value.to(kept if key.endswith("weight") else torch.float16) for key, value in tensors.items()}
        save_file(mixed, folder / name, {"format": "pt"})
    assert {value.dtype for value in states(open_model(folder)).values()} == {torch.float32}


def test_older_autoencoders_have_their_attention_by_its_old_names(folder, whole):
    tensors = load_file(folder / VAE)
    for key in list(tensors):
        for new, old in NAMES_OF_OLD.items():
            if f".{new}." in key:
                tensors[key.replace(f".{new}.", f".{old}.")] = tensors.pop(key)
    save_file(tensors, folder / VAE, {"format": "pt"})
    assert any(".proj_attn." in key for key in tensors)
    assert_same_network(folder, whole)


LORA = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        (UNET, LORA, f"hold {LORA}, which UNet2DConditionModel does not have; a LoRA is not applied: merge it"),
        (UNET, "conv_in.weight_scale", "hold conv_in.weight_scale, which UNet2DConditionModel does not have"),
        (TEXT, "logit_scale", "hold logit_scale, which CLIPTextModel does not have"),
        (VAE, "loss.logvar", "hold loss.logvar, which AutoencoderKL does not have"),
    ],
)
def test_weights_that_the_network_does_not_know_are_refused(folder, name, key, said, shards):
    edit_weights(folder / name, **{key: torch.zeros(2)})
    if shards:
        split(folder / name)
    with pytest.raises(UserError, match=said):
        open_model(folder)


@pytest.mark.parametrize(
    ("name", "new", "old"),
    [(TEXT, "final_layer_norm", "text_model.final_layer_norm"), (VAE, "to_q", "query"), (VAE, "to_out.0", "proj_attn")],
)
def test_a_weight_by_its_old_and_its_new_name_is_refused(folder, name, new, old):
    """One of the two would be dropped."""
    tensors = {key.removeprefix("text_model."): value for key, value in load_file(folder / name).items()}
    key = next(key for key in sorted(tensors) if new in key)
    save_file(tensors | {key.replace(new, old): tensors[key] + 1}, folder / name, {"format": "pt"})
    with pytest.raises(UserError, match="some are there twice, by an old and by a new name"):
        open_model(folder)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"sample_size": 0}),
        ("vae", {"block_out_channels": []}),
        ("vae", {"up_block_types": []}),
        ("text_encoder", {"hidden_size": "wide"}),
        ("text_encoder", {"num_attention_heads": 3}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"hidden_act": "other"}),
    ],
)
def test_a_config_that_makes_no_network_is_one_line(folder, part, changes):
    edit_json(folder / part / "config.json", **changes)
    with pytest.raises(UserError, match=f"/{part}: ") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


REACHED: list[str] = []
sys.addaudithook(lambda event, _: REACHED.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)


def test_a_folder_is_loaded_without_a_look_at_the_network(folder, monkeypatch):
    """Where nothing forbids it, and with names of repositories in every configuration."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("tokenizer/tokenizer_config.json", "text_encoder/config.json", "unet/config.json", "vae/config.json"):
        edit_json(folder / name, _name_or_path="owner/name", name_or_path="owner/name")
    socket.getaddrinfo("localhost", 80)
    assert REACHED  # the hook does see a look-up
    REACHED.clear()
    assert load_tokenizer(model_at(folder)).tokens(["a cat"])
    assert load_denoiser(model_at(folder)).encode(["a cat"])
    assert REACHED == []


def test_tokenizer_in_one_file_is_the_same_tokenizer(folder):
    prompts = ["a cat", "", "a dog by the sea, " * 9, "Cat\ncat", "caté<|endoftext|>"]
    made = DiffusionTokenizer(folder)
    made._tokenizer.save_pretrained(folder / "tokenizer")
    edit_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=16)
    (folder / "tokenizer" / "vocab.json").unlink(missing_ok=True)
    (folder / "tokenizer" / "merges.txt").unlink(missing_ok=True)
    assert json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["merges"]
    assert DiffusionTokenizer(folder).tokens(prompts) == made.tokens(prompts)
