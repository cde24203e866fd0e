"""The oracles: closed forms, and diffusers' own scheduler and pipeline."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

from sharpaudit.denoisers.families.stable_diffusion import snapshot
from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionTokenizer, Schedule
from sharpaudit.denoisers.sampling import DDIM, Guided, follow, times
from sharpaudit.errors import UserError
from sharpaudit.seeds import generator, latents
from tests.support.models import OptimalNetwork, open_model, whiten
from tests.support.strategies import TEXTS, texts
from tests.support.tiny_models import END, MAX_LENGTH, PREDICTIONS, edit_json

CPU = torch.device("cpu")
PROMPTS = ["a cat", "", "a dog by the sea, oil on canvas, " * 9, "a cat"]


def noise(n, *names):
    return latents([("test", *names, i) for i in range(n)], (4, 8, 8))


@pytest.fixture(scope="module")
def models(folders):
    return {prediction: open_model(folder) for prediction, folder in folders.items()}


@pytest.fixture(scope="module")
def model(models):
    return models["epsilon"]


@pytest.fixture(scope="module")
def tokenizer(folders):
    return DiffusionTokenizer(folders["epsilon"])


@pytest.fixture(scope="module")
def pipelines(folders):
    from diffusers import StableDiffusionPipeline

    found = {name: StableDiffusionPipeline.from_pretrained(folder) for name, folder in folders.items()}
    for pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("t", [981, 501, 101])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_score_of_a_gaussian_is_exact(folders, prediction, t):
    from diffusers import DDIMScheduler

    model = open_model(folders[prediction])
    draw = generator("gaussian")
    root_DD = torch.from_numpy(draw.standard_normal((256, 256))) / 16
    mean_D, covariance_DD = torch.from_numpy(draw.standard_normal(256)), root_DD @ root_DD.T
    alphas_cumprod = DDIMScheduler.from_pretrained(folders[prediction] / "scheduler").alphas_cumprod
    model._unet = OptimalNetwork(mean_D, covariance_DD, alphas_cumprod, prediction)
    x, level = noise(3, "x"), model.level(t)
    x0_hat = model.predict(x, t, model.encode(["a", "b", "c"])).x0_hat
    score = (level.a * x0_hat - x) / level.sigma**2
    exact = -whiten(x, level.a, level.sigma, mean_D, covariance_DD).T.reshape(x.shape)
    torch.testing.assert_close(score.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_schedule_is_that_of_diffusers(folder, beta_schedule):
    from diffusers import DDIMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    edit_json(path, beta_schedule=beta_schedule)
    theirs, ours = DDIMScheduler.from_pretrained(path.parent), Schedule.from_file(path)
    for t in (0, 1, 500, 981, 999):
        level = ours.level(t)
        assert level.a**2 == pytest.approx(float(theirs.alphas_cumprod[t]), rel=1e-4)
        assert level.a**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)
    for n_steps in (1, 5, 25, 50, 999):
        theirs.set_timesteps(n_steps)
        assert ours.timesteps(n_steps) == theirs.timesteps.tolist()


def test_screen_looks_at_the_first_of_fifty_steps(model):
    assert model.first_timestep() == model.timesteps(50)[0] == 981


@pytest.mark.parametrize("n_steps", [0, 1000])
def test_more_steps_than_trained_are_refused(model, n_steps):
    with pytest.raises(UserError, match=f"samples.steps = {n_steps}.*use 1 to 999"):
        model.timesteps(n_steps)


@pytest.mark.parametrize("t", [-1, 1000])
def test_timestep_out_of_range_is_no_index_from_the_end(model, t):
    with pytest.raises(ValueError, match="timestep"):
        model.level(t)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_samples_are_those_of_the_pipeline(models, pipelines, prediction):
    model, prompts, x = models[prediction], ["a cat", "a dog"], noise(2, "sample")
    with torch.no_grad():
        asked = Guided(model, model.encode(prompts), model.unconditional(2), 5.0)
        ours = follow(DDIM.steps(asked, x, times(model, 5)))
        pictures = model.decode(ours)
        arguments = {"num_inference_steps": 5, "guidance_scale": 5.0, "latents": x}
        theirs = pipelines[prediction](prompts, output_type="latent", **arguments).images
        shown = pipelines[prediction](prompts, output_type="pt", **arguments).images
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pictures, shown, rtol=1e-4, atol=1e-4)
    assert float(pictures.std()) > 0.01


@pytest.mark.parametrize("masked", [False, True])
def test_prompts_are_encoded_as_the_pipeline_does(folder, masked):
    from diffusers import StableDiffusionPipeline

    edit_json(folder / "text_encoder" / "config.json", use_attention_mask=masked)
    pipeline, model = StableDiffusionPipeline.from_pretrained(folder), open_model(folder)
    theirs, _ = pipeline.encode_prompt(PROMPTS, CPU, 1, do_classifier_free_guidance=False)
    ours = model.encode(PROMPTS)
    assert len(ours) == len(PROMPTS)
    torch.testing.assert_close(ours.tensors["prompt"], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "prompt", [*TEXTS.values(), "\0", "\u202eleft", "👩‍👩‍👧 " * 40, "x" * 100_000, "a b " * 25_000]
)
def test_any_prompt_is_encoded(model, tokenizer, prompt):
    conditioning = model.encode([prompt])
    assert conditioning.tensors["prompt"].shape == (1, MAX_LENGTH, 16)
    assert conditioning.tensors["prompt"].isfinite().all()
    assert tokenizer.tokens([prompt])[0].truncated == (tokenizer.tokens([prompt])[0].n_tokens > MAX_LENGTH)


@settings(max_examples=30, deadline=None)
@given(texts())
def test_equal_names_are_equal_inputs(model, tokenizer, text):
    """A prompt, itself cut at what the model sees, and another prompt."""
    name = tokenizer.tokens([text])[0].model_input_id
    same = torch.equal(tokenizer.ids([text])["input_ids"], tokenizer.ids(["a cat"])["input_ids"])
    assert (name == tokenizer.tokens(["a cat"])[0].model_input_id) == same


def test_tokens_count_both_marks_before_the_cut(tokenizer):
    empty, short, full, cut = tokenizer.tokens(["", "cat", "cat " * 14, "cat " * 15])
    assert [t.n_tokens for t in (empty, short, full, cut)] == [2, 3, 16, 17]
    assert [t.truncated for t in (empty, short, full, cut)] == [False, False, False, True]


def test_prompts_that_the_model_cannot_tell_apart_share_a_name(tokenizer, model):
    long = "cat " * 14
    names = [t.model_input_id for t in tokenizer.tokens([long, long + "dog", "cat", "CAT", f"cat{END}", "dog"])]
    assert names[0] == names[1] != names[2] == names[3] == names[4] != names[5]
    seen = model.encode(["cat", f"cat{END}", "dog"]).tensors["prompt"]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_no_prompts_have_no_tokens(tokenizer):
    assert tokenizer.tokens([]) == []


def test_prompt_matters(model):
    with torch.no_grad():
        x0_hat = model.predict(noise(1).repeat(2, 1, 1, 1), 981, model.encode(["a cat", ""])).x0_hat
    assert float((x0_hat[0] - x0_hat[1]).norm()) > 0.1


@pytest.mark.filterwarnings("ignore:.torch.jit.script.")  # PyTorch's own, of forward mode
def test_prediction_is_differentiable_both_ways(model):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    conditioning, x, direction = model.encode(["a cat"]), noise(1, "x"), noise(1, "u")
    with sdpa_kernel(SDPBackend.MATH):
        _, forward = torch.func.jvp(lambda z: model.predict(z, 501, conditioning).x0_hat, (x,), (direction,))
        _, pull = torch.func.vjp(lambda z: model.predict(z, 501, conditioning).x0_hat, x)
        (backward,) = pull(direction)
    torch.testing.assert_close((forward * direction).sum(), (backward * direction).sum(), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        ahead = model.predict(x + 0.01 * direction, 501, conditioning).x0_hat
        behind = model.predict(x - 0.01 * direction, 501, conditioning).x0_hat
    torch.testing.assert_close(forward, (ahead - behind) / 0.02, rtol=0.02, atol=0.02)


def test_prediction_is_differentiable_in_the_conditioning(model):
    conditioning = model.encode(["a cat"])
    conditioning.tensors["prompt"].requires_grad_(True)
    model.predict(noise(1), 501, conditioning).x0_hat.sum().backward()
    assert float(conditioning.tensors["prompt"].grad.norm()) > 0


def test_weights_want_no_gradient(model):
    networks = (model._unet, model._vae, model._text_encoder)
    assert not any(p.requires_grad for network in networks for p in network.parameters())
    assert not any(network.training for network in networks)


def test_low_precision_ends_before_the_first_and_last_layer(folders):
    model, exact = (open_model(folders["epsilon"], dtype) for dtype in (torch.bfloat16, torch.float32))
    x, seen = noise(2), {}
    layers = {"in": model._unet.conv_in, "middle": model._unet.mid_block.resnets[0].conv1, "out": model._unet.conv_out}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: seen.update({name: inputs[0].dtype}))
    output = model.network(x, 981, model.encode(["a", "b"]))
    assert seen == {"in": torch.float32, "middle": torch.bfloat16, "out": torch.float32}
    assert output.dtype == torch.float32
    assert not torch.equal(output, output.to(torch.bfloat16).float())
    torch.testing.assert_close(output, exact.network(x, 981, exact.encode(["a", "b"])), atol=0.05, rtol=0.05)
    assert {p.dtype for p in model._vae.parameters()} == {torch.float32}


def test_pictures_are_float32_in_zero_to_one(model):
    pictures = model.decode(noise(2) * 50)
    assert pictures.shape == (2, 3, 16, 16)
    assert pictures.dtype == torch.float32
    assert (float(pictures.min()), float(pictures.max())) == (0, 1)


def test_shift_of_the_autoencoder_is_added(folder, model):
    edit_json(folder / "vae" / "config.json", shift_factor=0.25)
    z = noise(1)
    torch.testing.assert_close(open_model(folder).decode(z), model.decode(z + 0.25 * 0.5), rtol=1e-4, atol=1e-4)


def test_loading_says_nothing(folders, capfd, caplog):
    with caplog.at_level(logging.INFO):
        model = open_model(folders["epsilon"])
        DiffusionTokenizer(folders["epsilon"]).tokens(["cat " * 1000])
        model.encode(["cat " * 1000])
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("verbosity", [logging.INFO, logging.CRITICAL])
def test_loading_leaves_the_libraries_settings(folders, bars, verbosity):
    import diffusers
    import transformers

    logs = [transformers.utils.logging, diffusers.utils.logging]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]

    def use(settings):
        for log, (level, enabled) in zip(logs, settings, strict=True):
            log.set_verbosity(level)
            log.enable_progress_bar() if enabled else log.disable_progress_bar()

    try:
        use([(verbosity, bars)] * 2)
        DiffusionTokenizer(folders["epsilon"])
        assert [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs] == [(verbosity, bars)] * 2
    finally:
        use(before)


def test_checkpoints_with_the_names_of_old_versions_load(folder, model):
    """Stable Diffusion 1's files on the hub are older than the names that the libraries use today."""
    text, vae = folder / snapshot.WEIGHTS[0], folder / snapshot.WEIGHTS[2]
    positions = {"text_model.embeddings.position_ids": torch.arange(MAX_LENGTH)[None]}
    save_file({f"text_model.{k}": v for k, v in load_file(text).items()} | positions, text, {"format": "pt"})
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae)
    for new, name in old.items():
        tensors = {k.replace(f"attentions.0.{new}", f"attentions.0.{name}"): v for k, v in tensors.items()}
    save_file(tensors, vae, {"format": "pt"})
    other, z = open_model(folder), noise(1)
    assert torch.equal(other.encode(["cat"]).tensors["prompt"], model.encode(["cat"]).tensors["prompt"])
    assert torch.equal(other.decode(z), model.decode(z))


def test_oblong_latents_keep_their_sides(folder):
    edit_json(folder / "unet" / "config.json", sample_size=[8, 16])
    assert open_model(folder).latent_shape == (4, 8, 16)
    assert json.loads((folder / "unet" / "config.json").read_text())["sample_size"] == [8, 16]
