"""The lab's model from nothing: training set, autoencoder, text encoder and UNet, and a folder of them.

`build(folder, work)` may be killed and called again: pictures, tokenizer, autoencoder and the state of the training are
kept in `work`, each under a name that holds the digest of its settings, so that none serves other settings. The folder
is written last: the model as a diffusers folder in float16, settings.json with recipe, versions and digests of the
weights, and the log of the training.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import asdict, astuple
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from pipelines.research.lab import artwork
from pipelines.research.lab import training as lab
from pipelines.research.lab.tokenizer import write_tokenizer
from pipelines.research.lab.trainingset import Plan, Recipe, picture, plan
from sharpaudit.errors import UserError
from sharpaudit.images import sha256_hex
from sharpaudit.tables.records import digest_of

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": lab.N_TIMESTEPS,
    "beta_start": lab.BETA_START,
    "beta_end": lab.BETA_END,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": False,
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def build(folder: Path, work: Path, recipe: Recipe, training: lab.Training) -> None:
    """Train the model of a recipe and write model/, settings.json and training.jsonl into `folder`, a new one."""
    work.mkdir(parents=True, exist_ok=True)
    log = lab.Log(work / "training.jsonl", sys.stderr)
    part = folder.with_name(f".{folder.name}.inprogress")
    shutil.rmtree(part, ignore_errors=True)
    _train(part / "model", work, plan(recipe), training, log)
    weights = {
        str(file.relative_to(part)): sha256_hex(file.read_bytes()) for file in sorted(part.rglob("*.safetensors"))
    }
    settings = {
        "recipe": asdict(recipe),
        "training": asdict(training),
        "objects": len(artwork.names()),
        "minutes": round(minutes(log.path), 1),
        "versions": versions(),
        "sha256": weights,
    }
    (part / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(log.path, part / "training.jsonl")
    part.rename(folder)


def _train(folder: Path, work: Path, drawn: Plan, training: lab.Training, log: lab.Log) -> None:
    """Autoencoder, tokenizer, text encoder and UNet from nothing, as a diffusers folder."""
    recipe, pictures_NHWC = drawn.recipe, kept_pictures(drawn, work)
    log.write("pictures", 0, pictures=len(drawn.rows), views=len(drawn.views))
    vae = _autoencoder(_kept(work, "vae", recipe, *_autoencoder_settings(training)), pictures_NHWC, training, log)
    tokenizer = _kept(work, "tokenizer", recipe)
    if not tokenizer.exists():
        write_tokenizer(tokenizer, drawn.captions)
    trainer = lab.Trainer(training, CLIPTokenizer.from_pretrained(tokenizer))
    latents_NCHW = lab.encode(vae, pictures_NHWC)
    log.write("latents", 0, mean=latents_NCHW.mean().item(), std=latents_NCHW.std().item())
    checkpoint = _kept(work, "denoiser", recipe, *astuple(training))
    lab.train_denoiser(trainer, latents_NCHW, drawn.captions, drawn.views, checkpoint, log)
    write_model(folder, tokenizer, vae, trainer)


def read_recipe(folder: Path) -> tuple[Recipe, lab.Training]:
    """The settings that a lab folder was built with. Raises UserError where there is none."""
    if not (folder / "settings.json").is_file():
        raise UserError(f"{folder}: no settings.json there; name a folder that `sharpaudit lab train` wrote")
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    recipe = settings["recipe"]
    recipe["exact"] = tuple((copies, many) for copies, many in recipe["exact"])
    return Recipe(**recipe), lab.Training(**settings["training"])


def kept_pictures(drawn: Plan, work: Path) -> npt.NDArray[np.uint8]:
    """The pictures of all rows, with shape (N, 64, 64, 3), drawn once and kept in `work`."""
    path = _kept(work, "pictures", drawn.recipe).with_suffix(".npy")
    if not path.exists():
        pictures_NHWC = np.stack([picture(drawn.recipe.seed, row) for row in drawn.rows])
        part = path.with_name("pictures.inprogress.npy")
        np.save(part, pictures_NHWC)
        part.replace(path)
    loaded: npt.NDArray[np.uint8] = np.load(path)
    return loaded


def latents_of(folder: Path, pictures_NHWC: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Latents of pictures by a model folder's autoencoder as its UNet sees them, with shape (N, 4, 16, 16)."""
    return lab.encode(_read_autoencoder(folder / "vae"), pictures_NHWC)


def _kept(work: Path, what: str, recipe: Recipe, *settings: float | str) -> Path:
    """Where `work` keeps something that these settings determine."""
    return work / f"{what}-{digest_of([asdict(recipe), settings])[:16]}"


def _autoencoder_settings(training: lab.Training) -> tuple[float, ...]:
    t = training
    return t.seed, t.autoencoder_batch, t.autoencoder_steps, t.autoencoder_lr, t.kl_weight, t.warmup


def minutes(log: Path) -> float:
    """How long a training took by its log: the seconds of every process that wrote to it, in minutes."""
    seconds = [json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines()]
    # A resumed training's clock starts again: the last entry of each process counts.
    ends = [now for now, after in zip(seconds, [*seconds[1:], 0.0], strict=True) if after < now]
    return float(sum(ends)) / 60


def versions(*beside: str) -> dict[str, str]:
    """Of the packages that a training depends on, and of those named beside them."""
    names = ("torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow", *beside)
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def write_model(folder: Path, tokenizer: Path, vae: AutoencoderKL, trainer: lab.Trainer) -> None:
    """Write the averaged weights as a diffusers folder in float16. `folder` must not exist."""
    folder.mkdir(parents=True)
    shutil.copytree(tokenizer, folder / "tokenizer")
    networks = {"vae": vae, **dict(trainer.averaged.items())}
    for name, network in networks.items():
        network.half().save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    scheduler = SCHEDULER | {"prediction_type": trainer.training.prediction}
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(scheduler, indent=1) + "\n", encoding="utf-8"
    )
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=1) + "\n", encoding="utf-8")


def _autoencoder(folder: Path, pictures_NHWC: np.ndarray, training: lab.Training, log: lab.Log) -> AutoencoderKL:
    """The trained autoencoder, from its folder if it is there."""
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.inprogress")
        lab.train_autoencoder(pictures_NHWC, training, log).save_pretrained(part)
        part.rename(folder)
    return _read_autoencoder(folder)


def _read_autoencoder(folder: Path) -> AutoencoderKL:
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    vae.register_to_config(_name_or_path="")  # no path of this machine in a folder that travels
    return vae.float().eval().requires_grad_(False)
