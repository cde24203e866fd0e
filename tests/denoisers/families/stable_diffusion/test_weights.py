"""Which files of a folder are the weights: whole, in shards, of a variant; and what leaves it open."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sharpaudit.denoisers.families.stable_diffusion.snapshot import WEIGHTS, digest, model_files
from sharpaudit.errors import UserError
from tests.support.tiny_models import assert_same_network, edit_json, edit_weights, split

TEXT, UNET, VAE = WEIGHTS
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def refused(folder, said):
    with pytest.raises(UserError, match=said) as caught:
        model_files(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WEIGHTS)
def test_shards_are_the_network_and_all_of_them_are_hashed(folder, whole, name):
    index = split(folder / name)
    part = name.split("/")[0]
    read = [file for file in model_files(folder) if file.startswith(part) and "config" not in file]
    there = [path for path in index.parent.iterdir() if path.name != "config.json"]
    assert sorted(read) == sorted(path.relative_to(folder).as_posix() for path in there)
    assert len(read) == 3
    assert_same_network(folder, whole)
    seen = {digest(folder, model_files(folder))}
    for file in read:
        if file.endswith(".json"):
            (folder / file).write_text((folder / file).read_text() + "\n")
        else:
            save_file({k: v + 1 for k, v in load_file(folder / file).items()}, folder / file, {"format": "pt"})
        seen.add(digest(folder, model_files(folder)))
    assert len(seen) == 4


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_one_variant_is_the_model(folder, whole, name):
    variant = name.replace(".safetensors", ".fp16.safetensors")
    (folder / name).rename(folder / variant)
    assert variant in model_files(folder)
    assert_same_network(folder, whole)


@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.safetensors.fp16.index.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
    ],
)
def test_a_variant_in_shards_is_the_model_by_each_of_its_names(folder, whole, index):
    split(folder / UNET, "fp16", index)
    assert f"unet/{index}" in model_files(folder)
    assert len(model_files(folder)) == 12
    assert_same_network(folder, whole)


def test_plain_weights_come_before_variants(folder):
    before = digest(folder, model_files(folder))
    for variant in ("fp16", "non_ema"):
        shutil.copy(folder / UNET, folder / UNET.replace(".safetensors", f".{variant}.safetensors"))
    shutil.copy(folder / UNET, folder / "unet" / "part.safetensors")
    split(folder / "unet" / "part.safetensors", "bf16", "diffusion_pytorch_model.safetensors.index.bf16.json")
    assert digest(folder, model_files(folder)) == before
    index = split(folder / UNET)
    assert f"unet/{index.name}" in model_files(folder)


def test_two_variants_are_refused_by_name(folder):
    shutil.copy(folder / UNET, folder / UNET.replace(".safetensors", ".ema.safetensors"))
    split(folder / UNET, "fp16")
    told = refused(folder, "which of these variants is the model")
    assert "unet/diffusion_pytorch_model.ema.safetensors" in told
    assert "unet/diffusion_pytorch_model.safetensors.index.fp16.json" in told


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("variant", ["", "fp16"])
def test_an_index_beside_the_whole_file_is_refused(folder, name, variant):
    """Diffusers would read the index, transformers the file."""
    kept = folder / (name.replace(".safetensors", f".{variant}.safetensors") if variant else name)
    keep = shutil.copy(folder / name, folder / "kept")
    split(folder / name, variant)
    shutil.move(keep, kept)
    assert f"{kept.parent.name}/{kept.name}" in refused(folder, "an index of shards beside other weights")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize("name", ["adapter_config.json", "Adapter_Config.json"])
def test_an_adapter_beside_the_weights_is_refused(folder, part, name):
    (folder / part / name).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "owner/base"}))
    refused(folder, f"{part}/{name}: an adapter, which some loaders apply.*merge it")


def test_a_distributed_checkpoint_beside_the_weights_is_refused(folder):
    shutil.copy(folder / TEXT, folder / "text_encoder" / "shard-00000-model-00001-of-00001.safetensors")
    refused(folder, "a distributed training, which some loaders prefer")


def edit_map(index, change):
    tree = json.loads(index.read_text())
    change(tree["weight_map"])
    index.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    "elsewhere",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..\\x.safetensors", "x.bin", "x\0.safetensors", 3, None],
)
def test_a_shard_elsewhere_is_refused(folder, elsewhere):
    index = split(folder / UNET)
    edit_map(index, lambda names: names.update({"conv_in.weight": elsewhere}))
    refused(folder, "weight_map names .* for conv_in.weight; the name of a safetensors file in the same folder")


@pytest.mark.parametrize("tree", [{}, {"metadata": {}, "weight_map": {}}, {"weight_map": {"a": "x.safetensors"}}, []])
def test_what_is_no_index_is_refused(folder, tree):
    split(folder / UNET).write_text(json.dumps(tree))
    refused(folder, INDEX)


def test_shards_that_are_not_those_of_the_index_are_refused(folder):
    index = split(folder / UNET)
    first, second = (index.with_name(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors") for i in (1, 2))
    text, tensors = index.read_text(), load_file(first)
    key, other = sorted(tensors)[0], sorted(load_file(second))[0]

    index.write_text(text.replace(f'"{key}"', '"other"'))
    refused(folder, f"{first.name} holds {key}, and unet/{INDEX} does not name it")
    index.write_text(text)
    edit_weights(first, **{key: None})
    refused(folder, f"{first.name} lacks {key}, and unet/{INDEX} names it there")
    edit_weights(first, **{key: tensors[key], other: torch.zeros(1)})
    refused(folder, f"{first.name} holds {other}, and unet/{INDEX} gives it to {second.name}")
    edit_weights(first, **{other: None})
    shutil.copy(second, index.with_name("diffusion_pytorch_model-00003-of-00003.safetensors"))
    refused(folder, f"00003-of-00003.safetensors is a shard that unet/{INDEX} does not name")
    index.with_name("diffusion_pytorch_model-00003-of-00003.safetensors").unlink()
    model_files(folder)
    second.unlink()
    refused(folder, f"{second.name} is missing, and unet/{INDEX} names it")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_weights_that_are_no_floats_are_refused(folder, part, kind):
    name = next(name for name in WEIGHTS if name.startswith(part))
    key = sorted(load_file(folder / name))[0]
    edit_weights(folder / name, **{key: load_file(folder / name)[key].to(kind)})
    refused(folder, f"{key} is of type .*weights are floating-point numbers")


def test_a_git_lfs_pointer_is_told_as_that(folder):
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, "not a whole safetensors file.*git lfs pull")


def test_missing_weights_say_what_is_there(folder):
    (folder / UNET).rename(folder / "unet" / "Model.SAFETENSORS")
    refused(folder, r"is missing.*unet holds Model\.SAFETENSORS, config\.json")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("text_encoder", "transformers_weights", "other.safetensors"),
        ("text_encoder", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("unet", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("vae", "quantization_config", {"quant_method": "bitsandbytes"}),
    ],
)
def test_a_config_that_asks_for_other_weights_is_refused(folder, name, key, value):
    edit_json(folder / name / "config.json", **{key: value})
    refused(folder, rf"{name}/config\.json: {key} = ")
