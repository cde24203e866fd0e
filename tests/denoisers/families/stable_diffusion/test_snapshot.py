"""What a folder must be to become a model, and that nothing in it is ever run."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sharpaudit.config import LAB
from sharpaudit.denoisers.families.stable_diffusion import snapshot
from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionTokenizer
from sharpaudit.errors import UserError
from tests.support.tiny_models import edit_json, open_model


def test_digest_follows_content_and_not_place(folder, folders):
    def digest():
        return snapshot.digest(folder, snapshot.model_files(folder))

    files = snapshot.model_files(folder)
    before = digest()
    assert before == snapshot.digest(folders["epsilon"], files) == open_model(folder).digest
    (folder / "README.md").write_text("not a part of the model")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"nor this")
    assert digest() == before
    seen = {before}
    for name in (n for n in files if n.endswith((".json", ".txt"))):
        (folder / name).write_text((folder / name).read_text() + "\n")
        seen.add(digest())
    for name in snapshot.WEIGHTS:
        size = (folder / name).stat().st_size
        save_file({k: v + 1 for k, v in load_file(folder / name).items()}, folder / name, {"format": "pt"})
        assert (folder / name).stat().st_size == size
        seen.add(digest())
    assert len(seen) == len(files) + 1


def test_digest_of_a_plain_folder_is_the_one_that_runs_were_made_with():
    """Of the model that ships: a run of it must not lose its fingerprint to a new way of naming files."""
    shipped = LAB / "emoji" / "model"
    expected = hashlib.sha256()
    names = [path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()]
    for name in sorted(set(names) - {"model_index.json"}):
        data = (shipped / name).read_bytes()
        expected.update(f"{name}\0{len(data)}\0".encode() + data)
    assert snapshot.digest(shipped, snapshot.model_files(shipped)) == expected.hexdigest()


def test_digest_follows_a_file_rewritten_in_place(folder):
    merges, before = folder / "tokenizer" / "merges.txt", DiffusionTokenizer(folder).digest
    merges.write_text(merges.read_text().replace("0.2", "0.3"))
    assert DiffusionTokenizer(folder).digest != before


def test_digest_of_the_tokenizer_ignores_the_networks(folder):
    before = DiffusionTokenizer(folder).digest
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        shutil.rmtree(folder / part)
    assert DiffusionTokenizer(folder).digest == before


def trap(mark):
    """A pickle that leaves a mark when it is loaded: it calls open(mark, "w")."""
    return f"cbuiltins\nopen\n(S{str(mark)!r}\nS'w'\ntR.".encode()


@pytest.mark.parametrize("name", snapshot.WEIGHTS)
def test_pickled_weights_are_refused_and_not_read(folder, tmp_path, name):
    weights = folder / name
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(trap(tmp_path / "mark"))
    with pytest.raises(UserError, match=r"is missing; .*safetensors.*never from \.bin"):
        open_model(folder)
    weights.with_suffix(".bin").rename(weights)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_model(folder)
    assert not (tmp_path / "mark").exists()


def test_cut_weights_are_refused(folder):
    weights = folder / snapshot.WEIGHTS[1]
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_model(folder)


@pytest.mark.parametrize("name", snapshot.WEIGHTS)
def test_weights_that_are_not_all_there_are_refused(folder, name):
    tensors = load_file(folder / name)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / name, {"format": "pt"})
    with pytest.raises(UserError, match="the weights lack"):
        open_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": ["pipeline", "Evil"]},
        {"_class_name": "StableDiffusionXLPipeline"},
        {"unet": ["evil", "UNet2DConditionModel"]},
        {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]},
        {"tokenizer": "CLIPTokenizer"},
        {"vae": None},
    ],
)
def test_code_of_a_model_is_refused_and_never_run(folder, tmp_path, changes):
    code = f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Evil: pass\nclass UNet2DConditionModel: pass\n"
    for place in ("pipeline.py", "evil.py", "unet/evil.py", "tokenizer/evil.py", "text_encoder/evil.py"):
        (folder / place).write_text(code)
    edit_json(folder / "model_index.json", **changes)
    with pytest.raises(UserError, match=r"model_index\.json.*only"):
        open_model(folder)
    assert not (tmp_path / "mark").exists()


def test_code_that_a_part_names_is_never_run(folder, tmp_path):
    code = f"open({str(tmp_path / 'mark')!r}, 'w')\n"
    for part, config in {
        "text_encoder": "config.json",
        "tokenizer": "tokenizer_config.json",
        "unet": "config.json",
    }.items():
        (folder / part / "evil.py").write_text(code)
        auto_map = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        edit_json(folder / part / config, auto_map=auto_map)
    edit_json(folder / "text_encoder" / "config.json", attn_implementation="owner/kernel")
    assert open_model(folder).encode(["cat"])
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler", "model_index.json"])
def test_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    with pytest.raises(UserError, match=f"{part}.* is missing"):
        open_model(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prediction_type", "sample"),
        ("prediction_type", "flow"),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("beta_start", None),
        ("beta_end", 1.5),
        ("num_train_timesteps", 10),
        ("trained_betas", [0.1, 0.2]),
        ("rescale_betas_zero_snr", True),
    ],
)
def test_foreign_schedule_is_refused_by_name(folder, name, value):
    edit_json(folder / "scheduler" / "scheduler_config.json", **{name: value})
    with pytest.raises(UserError, match=rf"scheduler_config\.json: {name} = ") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("unet/config.json", {"in_channels": 9}, "cannot be loaded as UNet2DConditionModel"),
        ("unet/config.json", {"cross_attention_dim": 24}, "cannot be loaded as UNet2DConditionModel"),
        ("unet/config.json", {"sample_size": "large"}, "sample_size = 'large'"),
        ("unet/config.json", {"time_cond_proj_dim": 8}, "the weights lack time_embedding.cond_proj.weight"),
        ("vae/config.json", {"act_fn": "nothing"}, "cannot be loaded as AutoencoderKL"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": None}, "model_max_length = None"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 77}, "gives 77 tokens, the text encoder takes 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(folder, file, changes, said):
    edit_json(folder / file, **changes)
    with pytest.raises(UserError, match=said) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "weight", "shape", "said"),
    [
        ({"time_cond_proj_dim": 8}, "time_embedding.cond_proj.weight", (16, 8), "time_cond_proj_dim = 8"),
        ({"in_channels": 9}, "conv_in.weight", (16, 9, 3, 3), "takes 9 and gives 4 channels for latents of 4"),
    ],
)
def test_networks_of_other_families_are_refused(folder, changes, weight, shape, said):
    edit_json(folder / "unet" / "config.json", **changes)
    weights = folder / snapshot.WEIGHTS[1]
    save_file(load_file(weights) | {weight: torch.zeros(shape)}, weights, {"format": "pt"})
    with pytest.raises(UserError, match=said):
        open_model(folder)


def test_text_encoder_of_another_model_is_refused(folder):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig.from_pretrained(folder / "text_encoder", hidden_size=32)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(UserError, match="text encoder gives 32 numbers a token, the unet takes 16"):
        open_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": ' * 100_000, "\ud7ff\0"])
def test_broken_json_is_a_user_error(folder, text):
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(UserError, match="JSON"):
        open_model(folder)


EVERY = ("model_index.json", *snapshot.CONFIGS, *snapshot.WEIGHTS, snapshot.TOKENIZER_CONFIG, "tokenizer/vocab.json")


@pytest.mark.parametrize("name", [*EVERY, "tokenizer/special_tokens_map.json"])
@pytest.mark.parametrize(
    ("put", "said"),
    [
        (Path.mkdir, "is no file"),
        (os.mkfifo, "is no file"),
        (lambda path: path.symlink_to("nowhere"), "is a link to a file that is not there"),
        (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_one_line_with_its_name(folder, name, put, said):
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    with pytest.raises(UserError, match=rf"{name}:? {said}") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*EVERY, "tokenizer/merges.txt"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_read_is_one_line_with_its_name(folder, name, number, monkeypatch):
    """As root in a test no mode stops reading: the open is refused to every path that Python opens."""
    real = io.open

    def refusing(file, *given, **options):
        if os.fspath(file).endswith(name):
            raise OSError(number, os.strerror(number), file)
        return real(file, *given, **options)

    monkeypatch.setattr(io, "open", refusing)
    for use in (snapshot.model_files, open_model) if name in snapshot.WEIGHTS else (open_model,):
        with pytest.raises(UserError, match=rf"{name}: cannot be read: {os.strerror(number)}") as caught:
            use(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae"])
def test_a_folder_that_cannot_be_listed_is_one_line_with_its_name(folder, part, monkeypatch):
    real = os.listdir

    def refusing(place="."):
        if os.fspath(place).endswith(part):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
        return real(place)

    monkeypatch.setattr(os, "listdir", refusing)
    with pytest.raises(UserError, match=f"{part}: cannot be read: Permission denied"):
        open_model(folder)
