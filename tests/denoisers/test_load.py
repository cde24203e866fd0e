from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers import load
from sharpaudit.denoisers.base import Conditioning
from sharpaudit.denoisers.families.stable_diffusion.family import StableDiffusionFamily
from sharpaudit.denoisers.families.stable_diffusion.snapshot import WEIGHTS
from sharpaudit.denoisers.files import INDEX
from sharpaudit.denoisers.load import load_anew, load_denoiser, load_tokenizer, model_digest, model_files
from sharpaudit.errors import TransientError, UserError
from tests.support.models import model_at
from tests.support.shells import bare
from tests.support.tiny_models import edit_json, split

REVISION = "0123456789" * 4


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch):
    monkeypatch.setattr(load, "_held", {})


@pytest.fixture
def analytic(tmp_path):
    path = tmp_path / "analytic" / "model.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"kind": "gaussian", "seed": 3}))
    return path


@pytest.mark.parametrize("name", ["model.json", "."])
def test_analytic_model_is_a_file_or_its_folder(analytic, name):
    config = model_at(analytic.parent / name)
    assert load_denoiser(config).latent_shape == (3, 8, 8)
    assert load_denoiser(config).digest == model_digest(config)
    assert load_tokenizer(config).digest == "gaussian-words-77-v1"


def test_diffusers_folder_is_a_model(folders):
    config = model_at(folders["v_prediction"])
    denoiser = load_denoiser(config)
    assert denoiser.latent_shape == (4, 8, 8)
    assert denoiser.device == torch.device("cpu")
    assert denoiser.digest == model_digest(config)
    assert isinstance(denoiser.encode(["a cat"]), Conditioning)
    assert load_tokenizer(config).tokens(["a cat"])[0].n_tokens == 4


@pytest.mark.parametrize("place", ["absent", "absent.json", "empty", "list.json", "text.txt"])
def test_anything_else_is_refused_in_one_line(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text('{"prompts": []}')
    (tmp_path / "text.txt").write_text('{"kind": "gaussian"}')
    for use in (model_digest, load_tokenizer, load_denoiser):
        with pytest.raises(
            UserError, match=r"no model there; a model is a diffusers folder .* or a model\.json"
        ) as caught:
            use(model_at(tmp_path / place))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "sd15/v1-5-pruned.safetensors",
            r"v1-5-pruned\.safetensors looks like a checkpoint in one file.*from_single_file",
        ),
        ("sd15", r"v1-5-pruned\.safetensors looks like a checkpoint in one file"),
        ("model/unet", "a part of the model in the folder above"),
        ("model/unet/diffusion_pytorch_model.safetensors", "looks like a checkpoint in one file"),
    ],
)
def test_a_path_that_is_near_a_model_says_how_to_get_one(folder, tmp_path, place, said):
    (tmp_path / "sd15").mkdir()
    shutil.copy(folder / WEIGHTS[1], tmp_path / "sd15" / "v1-5-pruned.safetensors")
    with pytest.raises(UserError, match=f"no model there; .*{said}") as caught:
        model_digest(model_at(tmp_path / place))
    assert "\n" not in str(caught.value)


def test_a_place_that_may_not_be_looked_at_is_one_line(folder, monkeypatch):
    def refusing(path, *given, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "stat", refusing)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        model_digest(model_at(folder / "not there"))


def test_worker_keeps_its_model(folders, tmp_path):
    config = model_at(folders["epsilon"])
    moved = model_at(shutil.copytree(folders["epsilon"], tmp_path / "moved"))
    assert load_denoiser(config) is load_denoiser(config) is load_denoiser(moved)


def test_changed_model_is_loaded_anew(folder):
    config = model_at(folder)
    before = load_denoiser(config)
    edit_json(folder / "scheduler" / "scheduler_config.json", beta_end=0.02)
    after = load_denoiser(config)
    assert after is not before
    assert after.digest != before.digest
    assert after.level(999) != before.level(999)


def test_a_model_of_ones_own_is_not_the_one_that_is_held(folders):
    config = model_at(folders["epsilon"])
    held = load_denoiser(config)
    own = load_anew(config, torch.device("cpu"), torch.bfloat16)
    assert own.encode(["a cat"]).tensors["prompt"].dtype == torch.bfloat16
    assert load_denoiser(config) is held


def test_only_one_model_is_held(folders, analytic):
    first = load_denoiser(model_at(folders["epsilon"]))
    load_denoiser(model_at(analytic))
    assert len(load._held) == 1
    assert load_denoiser(model_at(folders["epsilon"])) is not first


def test_model_that_is_left_frees_its_memory(folders, analytic):
    gc.disable()  # or it may happen to run by itself
    try:
        weights = weakref.ref(load_denoiser(model_at(folders["epsilon"]))._unet)
        load_denoiser(model_at(analytic))
        assert weights() is None
    finally:
        gc.enable()


def test_precision_asked_for_is_a_model_of_its_own(folders, monkeypatch):
    monkeypatch.setattr("sharpaudit.devices.cpu_has_bf16", lambda: True)
    exact = load_denoiser(model_at(folders["epsilon"]))
    rounded = load_denoiser(model_at(folders["epsilon"], dtype="auto"))
    dtypes = [model.encode(["a cat"]).tensors["prompt"].dtype for model in (exact, rounded)]
    assert dtypes == [torch.float32, torch.bfloat16]


def test_impossible_device_is_refused_before_the_weights_are_read(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(StableDiffusionFamily, "load", lambda *arguments: pytest.fail("the weights were read"))
    with pytest.raises(UserError, match=r"model\.device"):
        load_denoiser(model_at(folders["epsilon"], device="cuda"))


def test_analytic_audit_imports_no_large_library(analytic):
    program = (
        "import sys; from sharpaudit.config import ModelConfig; from sharpaudit.denoisers import load\n"
        f"config = ModelConfig(path={str(analytic)!r}, device='cpu')\n"
        "load.load_denoiser(config); load.load_tokenizer(config); load.model_digest(config)\n"
        "print({'diffusers', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=bare(), capture_output=True, text=True, timeout=100
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture
def hub(monkeypatch):
    """What the hub answers: a folder, or an exception."""
    asked = []

    def answer(with_):
        def snapshot_download(repo, *, revision, allow_patterns):
            asked.append((repo, revision, allow_patterns))
            if isinstance(with_, Exception):
                raise with_
            return str(with_)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return asked

    return answer


def hub_model():
    return ModelConfig(repo="owner/name", revision=REVISION, device="cpu", dtype="float32")


def test_pinned_revision_becomes_a_folder(hub, folders):
    asked = hub(folders["epsilon"])
    assert model_digest(hub_model()) == model_digest(model_at(folders["epsilon"]))
    assert load_denoiser(hub_model()) is load_denoiser(model_at(folders["epsilon"]))
    assert {entry[:2] for entry in asked} == {("owner/name", REVISION)}
    # What the repository holds is looked up first: its index names the family, which knows what to ask for.
    assert asked[0][2] == [INDEX, "model.json"]
    patterns = [pattern for entry in asked for pattern in entry[2]]
    assert {Path(pattern).suffix for pattern in patterns} == {".json", ".txt", ".safetensors"}
    assert not any("*" in pattern for pattern in patterns)


@pytest.fixture
def repository(folder, tmp_path, monkeypatch):
    """A hub with one repository, `folder`, and a cache that holds what was asked for."""
    cache = tmp_path / "cache"

    def snapshot_download(repo, *, revision, allow_patterns):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if any(fnmatch(name, pattern) for pattern in allow_patterns) and not (cache / name).exists():
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for part in ("unet", "text_encoder", "safety_checker"):
        (folder / part).mkdir(exist_ok=True)
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "flax_model.msgpack", "model.onnx"):
            (folder / part / name).write_text("not to be fetched")
    return cache


def fetched(cache):
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}


def test_of_a_repository_only_what_may_be_read_is_fetched(folder, repository):
    for variant in ("fp16", "non_ema"):
        shutil.copy(folder / WEIGHTS[1], (folder / WEIGHTS[1]).with_suffix(f".{variant}.safetensors"))
    assert model_digest(hub_model()) == model_digest(model_at(folder))
    assert fetched(repository) == {INDEX, *model_files(model_at(folder))}


@pytest.mark.parametrize(
    ("variant", "index"),
    [
        ("", "diffusion_pytorch_model.safetensors.index.json"),
        ("fp16", "diffusion_pytorch_model.safetensors.index.fp16.json"),
        ("fp16", "diffusion_pytorch_model.fp16.safetensors.index.json"),
    ],
)
def test_of_a_repository_in_shards_all_of_them_are_fetched(folder, repository, variant, index):
    split(folder / WEIGHTS[1], variant, index)
    assert model_digest(hub_model()) == model_digest(model_at(folder))
    assert fetched(repository) == {INDEX, *model_files(model_at(folder))}
    assert load_denoiser(hub_model()).digest == model_digest(hub_model())


def test_of_a_repository_with_variants_alone_the_one_is_fetched(folder, repository):
    for name in WEIGHTS:
        (folder / name).rename((folder / name).with_suffix(".fp16.safetensors"))
    assert model_digest(hub_model()) == model_digest(model_at(folder))
    assert fetched(repository) == {INDEX, *model_files(model_at(folder))}


def test_a_repository_is_refused_as_its_folder_would_be(folder, repository):
    (folder / "text_encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter"):
        model_digest(hub_model())
    (folder / "text_encoder" / "adapter_config.json").unlink()
    (repository / "text_encoder" / "adapter_config.json").unlink()
    shutil.copy(folder / WEIGHTS[1], folder / "kept")
    split(folder / WEIGHTS[1])
    shutil.move(folder / "kept", folder / WEIGHTS[1])
    with pytest.raises(UserError, match="an index of shards beside other weights"):
        model_digest(hub_model())


def hub_error(kind, status):
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    request = httpx.Request("GET", "https://hub.example/owner/name")
    return getattr(errors, kind)("said\nby the hub", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("kind", "status", "raised"),
    [
        ("RepositoryNotFoundError", 404, UserError),
        ("RevisionNotFoundError", 404, UserError),
        ("GatedRepoError", 403, UserError),
        ("HfHubHTTPError", 401, UserError),
        ("HfHubHTTPError", 429, TransientError),
        ("HfHubHTTPError", 503, TransientError),
    ],
)
def test_refusal_of_the_hub_is_final_and_its_trouble_is_not(hub, kind, status, raised):
    hub(hub_error(kind, status))
    with pytest.raises(raised, match=f"owner/name at {REVISION}") as caught:
        model_digest(hub_model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("offline", "raised"), [(True, UserError), (False, TransientError)])
def test_offline_and_not_in_the_cache_is_the_users_to_mend(hub, monkeypatch, offline, raised):
    from huggingface_hub import constants, errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    hub(errors.LocalEntryNotFoundError("not here"))
    with pytest.raises(raised, match="owner/name"):
        load_tokenizer(hub_model())


def test_broken_connection_may_heal(hub):
    from huggingface_hub.utils import httpx

    hub(httpx.ReadTimeout("too slow"))
    with pytest.raises(TransientError, match="broke off"):
        model_digest(hub_model())


def test_hub_library_itself_stays_offline(tmp_path, monkeypatch):
    """The real call: an empty cache, and HF_HUB_OFFLINE as a user may set it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids a download"):
        model_digest(hub_model())


@pytest.mark.parametrize("repo", ["a/b/c", "spaces in it", "../up"])
def test_name_that_is_none_is_refused(repo):
    with pytest.raises(UserError, match="not the name of a hub repository"):
        model_digest(ModelConfig(repo=repo, revision=REVISION))
