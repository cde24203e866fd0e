"""What only a CUDA device can show: the same numbers as on the CPU, in the precision that was asked for."""

from __future__ import annotations

import os

# cuBLAS reads it when it starts; without it, it has no deterministic mode.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from pipelines.workers.ray import _environment
from sharpaudit.config import ModelConfig, RunConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.denoisers.sampling import DDIM, Guided, follow, times
from sharpaudit.devices import choose_device, choose_dtype, describe_hardware
from sharpaudit.seeds import latents
from tests.support.audits import audit, tables
from tests.support.real_audits import assert_same_scores, write_audit
from tests.support.tiny_models import PREDICTIONS, write_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
PROMPTS = ["a cat", "a dog", "", "a cat by the sea"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {prediction: write_model(root / prediction, prediction) for prediction in PREDICTIONS}


def load(folder, device, dtype):
    return load_denoiser(ModelConfig(path=str(folder), device=device, dtype=dtype))


def predicted(model, t=981):
    x = latents([("gpu", i) for i in range(len(PROMPTS))], model.latent_shape).to(model.device)
    with torch.no_grad():
        return model.predict(x, t, model.encode(PROMPTS)).x0_hat


def relative_error(found, exact):
    return float((found.cpu() - exact.cpu()).norm() / exact.norm())


def test_auto_takes_the_device():
    assert choose_device("auto").type == "cuda"
    assert describe_hardware()["devices"]
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert choose_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("t", [981, 21])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_float32_agrees_with_the_cpu(folders, prediction, t):
    """1e-5 holds for float32 and fails for TF32, whose products are rounded to 10 bits."""
    exact = predicted(load(folders[prediction], "cpu", "float32"), t)
    found = predicted(load(folders[prediction], "cuda", "float32"), t)
    assert found.is_cuda
    assert relative_error(found, exact) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_near_and_comes_out_in_float32(folders, dtype):
    exact = predicted(load(folders["v_prediction"], "cpu", "float32"))
    found = predicted(load(folders["v_prediction"], "cuda", dtype))
    assert found.dtype == torch.float32
    assert 0 < relative_error(found, exact) < 0.05


def test_samples_and_pictures_agree_with_the_cpu(folders):
    pictures = []
    for device in ("cpu", "cuda"):
        model = load(folders["epsilon"], device, "float32")
        x = latents([("gpu", 0), ("gpu", 1)], model.latent_shape).to(model.device)
        with torch.no_grad():
            asked = Guided(model, model.encode(PROMPTS[:2]), model.unconditional(2), 5.0)
            end = follow(DDIM.steps(asked, x, times(model, 5)))
            pictures.append(model.decode(end))
    assert pictures[1].device.type == "cpu"
    torch.testing.assert_close(pictures[1], pictures[0], rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.torch.jit.script.")  # PyTorch's own, of forward mode; its category changes
def test_forward_mode_agrees_with_a_finite_difference(folders):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model = load(folders["epsilon"], "cuda", "float32")
    x, u = latents([("gpu", "x"), ("gpu", "u")], model.latent_shape).to(model.device).split(1)
    conditioning = model.encode(["a cat"])
    with sdpa_kernel(SDPBackend.MATH):
        _, forward = torch.func.jvp(lambda z: model.predict(z, 501, conditioning).x0_hat, (x,), (u,))
    with torch.no_grad():
        ahead, behind = (model.predict(x + h * u, 501, conditioning).x0_hat for h in (0.01, -0.01))
    torch.testing.assert_close(forward, (ahead - behind) / 0.02, rtol=0.02, atol=0.02)


def test_leaving_a_model_frees_its_memory(folders):
    """A worker that changes its model must have room for the new one."""
    load(folders["epsilon"], "cuda", "float32")
    held = torch.cuda.memory_allocated()
    load(folders["v_prediction"], "cuda", "float32")
    load(folders["epsilon"], "cuda", "float32")
    assert torch.cuda.memory_allocated() <= held


def test_a_whole_audit_scores_as_on_the_cpu_and_says_where_it_was_made(tmp_path):
    config_path = write_audit(tmp_path, "epsilon")
    # Of random weights sharpness is mostly rounding, so that it says nothing here.
    settings = ("model.dtype=float32", 'scores.metrics=["residual_gap", "noise_gap"]')
    found = {}
    for device in ("cpu", "cuda"):
        outcome = audit(config_path, tmp_path / device, f"model.device={device}", *settings)
        assert outcome.facts["reconciles"]
        assert outcome.facts["run"]["model"]["device"] == device
        found[device] = tables(tmp_path / device)
    assert_same_scores(found["cpu"], found["cuda"], rounding=1e-3)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("share", "devices"), [(0, 0), (0.5, 1)])
def test_a_worker_sees_a_device_if_it_has_a_share(share, devices):
    import ray

    def count():
        import torch

        return torch.cuda.device_count()

    environment = {"env_vars": _environment(RunConfig(executor="ray", num_gpus=share), 1)}
    worker = ray.remote(count).options(num_cpus=1, num_gpus=share, runtime_env=environment)
    assert ray.get(worker.remote()) == devices


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_share_the_device(tmp_path):
    config_path = write_audit(tmp_path, "v_prediction")
    shares = ("run.executor=ray", "run.workers=2", "run.num_gpus=0.5")
    outcome = audit(config_path, tmp_path / "shared", "model.dtype=float32", *shares)
    audit(config_path, tmp_path / "alone", "model.dtype=float32")
    assert outcome.facts["reconciles"]
    assert outcome.facts["run"]["model"]["device"] == "cuda"
    assert_same_scores(tables(tmp_path / "alone"), tables(tmp_path / "shared"))
