"""Whole Stable-Diffusion-shaped models of a few thousand weights, written as the hub's folders are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sharpaudit.seeds import generator

MAX_LENGTH = 16
PREDICTIONS = ("epsilon", "v_prediction")
START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path) -> dict[str, int]:
    """All bytes, the word "cat" and the two marks; returns the vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", START, END]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": MAX_LENGTH}))
    return vocabulary


def randomise(network: torch.nn.Module, name: str) -> torch.nn.Module:
    """Weights that keep the signal's size, drawn by name: no global seed."""
    draw = generator("tiny", name)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            values = torch.from_numpy(draw.standard_normal(tuple(weight.shape)))
            spread = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.1
            weight.copy_(values * spread + (weight.dim() == 1 and key.endswith("weight")))
    return network


def write_networks(folder: Path, vocabulary: dict[str, int], levels: int = 2) -> None:
    """levels: of the autoencoder, each but the last halving pictures; of 2 they have 16 x 16 pixels, of 4 64 x 64."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,  # the number of heads, in this class
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, *[16] * (levels - 1)),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8 * 2 ** (levels - 1),
        scaling_factor=0.5,
    )
    for name, network in {"text_encoder": CLIPTextModel(text), "unet": unet, "vae": vae}.items():
        randomise(network, name).save_pretrained(folder / name)


def write_model(folder: Path, prediction_type: str = "epsilon", levels: int = 2) -> Path:
    """A diffusers folder. Its scheduler is written as Stable Diffusion's is. levels: of the autoencoder."""
    write_networks(folder, write_tokenizer(folder / "tokenizer"), levels)
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.38.0",
        "requires_safety_checker": False,
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def split(whole: Path, variant: str = "", index: str = "") -> Path:
    """Two shards and their index in place of a file of weights, named as diffusers names them; returns the index."""
    from safetensors.torch import load_file, save_file

    tensors, (stem, kind) = load_file(whole), (whole.stem, f".{variant}" if variant else "")
    weight_map = {}
    for i, keys in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        shard = f"{stem}{kind}-0000{i}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, whole.with_name(shard), {"format": "pt"})
        weight_map |= dict.fromkeys(keys, shard)
    whole.unlink()
    path = whole.with_name(index or f"{stem}.safetensors.index{kind}.json")
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def edit_weights(path: Path, **changes: torch.Tensor | None) -> None:
    """Set tensors of a file of weights, dots of their names as __; None removes one."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path) | {key.replace("__", "."): value for key, value in changes.items()}
    save_file({key: value for key, value in tensors.items() if value is not None}, path, {"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def open_model(folder: Path) -> Any:
    from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser

    return DiffusionDenoiser(folder, torch.device("cpu"), torch.float32)


def states(model: Any) -> dict[str, torch.Tensor]:
    """All numbers of the three networks of a model."""
    networks = {"text": model._text_encoder, "unet": model.unet, "vae": model._vae}
    return {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}


def assert_same_network(folder: Path, whole: dict[str, torch.Tensor]) -> None:
    """The folder's model has exactly these numbers."""
    found = states(open_model(folder))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)
