"""Training of the lab's model on the CPU: an autoencoder, then text encoder and UNet together.

Sizes: pictures 3 x 64 x 64, latents 4 x 16 x 16 (a factor of 4), a UNet of 64, 128 and 192 channels whose
cross-attention sees 8 x 8 and 4 x 4 only, a text encoder of 4 layers, 24 tokens. Epsilon or v prediction with min-SNR
weights (Hang et al., ICCV 2023), Stable Diffusion's betas, an exponential moving average of the weights. Every step
draws by its number, and a checkpoint holds the whole state: a resumed training goes on as if it had never stopped.

Shapes: N pictures, B batch, C H W latent, L tokens, T timesteps.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.research.lab import checkpoint
from pipelines.research.lab.drawing import SIDE
from pipelines.research.lab.tokenizer import MAX_LENGTH
from sharpaudit.denoisers.schedule import scaled_linear_alphas_cumprod
from sharpaudit.seeds import generator

BETA_START, BETA_END, N_TIMESTEPS = 0.00085, 0.012, 1000
WIDTH = 128
CROP = 32


@dataclass(frozen=True)
class Training:
    """The settings of all trainings."""

    seed: int = 0
    autoencoder_batch: int = 16
    autoencoder_steps: int = 2_400
    autoencoder_lr: float = 1e-3
    kl_weight: float = 1e-6
    batch: int = 64
    steps: int = 3_400
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    drop_caption: float = 0.1
    max_snr: float = 5.0
    floor: float = 0.1
    """An error in x0 weighs min(SNR, max_snr) + floor (SNR + 1). Without the floor the first denoising steps, which
    decide the colour of the ground, would hardly be trained."""
    checkpoint_every: int = 200
    log_every: int = 20
    prediction: str = "epsilon"
    """What the UNet predicts, as diffusers names it: epsilon or v_prediction."""


MINIATURE = Training(autoencoder_steps=40, batch=8, steps=60, checkpoint_every=30, log_every=5)


class Log:
    """One JSON line per entry, in a file and on a stream."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self.path, self.stream = path, stream
        self.start = time.monotonic()

    def write(self, part: str, step: int, **values: float) -> None:
        """Add an entry with the seconds since this process began."""
        entry = {"part": part, "step": step, "seconds": round(time.monotonic() - self.start, 1)}
        line = json.dumps(entry | {name: float(f"{value:.5g}") for name, value in values.items()})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, file=self.stream, flush=True)


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder, 3 x 64 x 64 to 4 x 16 x 16.

    Residual branches begin at zero, other convolutions keep the size of their input and the posterior is narrow
    (standard deviation 0.05), so that colours pass from the first step on.
    """
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    for name, layer in vae.named_modules():
        if name.endswith("conv2"):
            torch.nn.init.zeros_(layer.weight)
        elif isinstance(layer, torch.nn.Conv2d) and "quant" not in name:
            layer.weight.data.mul_(math.sqrt(3))
    torch.nn.init.constant_(vae.quant_conv.bias[4:], -6.0)
    return vae


def new_denoiser(n_vocabulary: int) -> torch.nn.ModuleDict:
    """An untrained text encoder and UNet, as {"text_encoder", "unet"}."""
    text = CLIPTextConfig(
        vocab_size=n_vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=n_vocabulary - 2,
        eos_token_id=n_vocabulary - 1,
        pad_token_id=n_vocabulary - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, in this class
    )
    return torch.nn.ModuleDict({"text_encoder": CLIPTextModel(text), "unet": unet})


def to_tensor(pictures_NHWC: np.ndarray) -> torch.Tensor:
    """Pictures as float32 from -1 to 1, with shape (N, 3, H, W), channels last."""
    return torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def train_autoencoder(pictures_NHWC: np.ndarray, training: Training, log: Log) -> AutoencoderKL:
    """Train on random crops (it is convolutional), then set scaling_factor to 1 / std of the latents."""
    torch.manual_seed(training.seed)  # noqa: TID251 - initial weights come from the global generator
    vae = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), training.autoencoder_lr, (0.9, 0.95), weight_decay=0.0)
    for step in range(training.autoencoder_steps):
        set_lr(optimizer, training.autoencoder_lr, step, training.autoencoder_steps, training.warmup)
        x = to_tensor(_crops(pictures_NHWC, training, step)).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noise = torch.from_numpy(generator(training.seed, "vae noise", step).standard_normal(posterior.mean.shape))
        rebuilt = vae.decode(posterior.mean + posterior.std * noise.float()).sample
        error = rebuilt - x
        loss = error.abs().mean() + error.square().mean() + training.kl_weight * posterior.kl().mean()
        optimizer_step(optimizer, vae, loss)
        if step % training.log_every == 0:
            log.write("autoencoder", step, loss=loss.item(), mse=error.square().mean().item())
    vae.eval().requires_grad_(False)
    sample = pictures_NHWC[generator(training.seed, "scale").integers(len(pictures_NHWC), size=512)]
    scale = 1 / encode(vae, sample).std().item()
    vae.register_to_config(scaling_factor=scale)
    log.write("autoencoder", training.autoencoder_steps, scaling_factor=scale)
    return vae


def _crops(pictures_NHWC: np.ndarray, training: Training, step: int) -> np.ndarray:
    draw = generator(training.seed, "crops", step)
    which = draw.integers(len(pictures_NHWC), size=training.autoencoder_batch)
    corners = draw.integers(SIDE - CROP + 1, size=(training.autoencoder_batch, 2))
    cut = [pictures_NHWC[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(which, corners, strict=True)]
    return np.stack(cut)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures_NHWC: np.ndarray, batch: int = 16) -> torch.Tensor:
    """Mean latents times scaling_factor, with shape (N, 4, 16, 16).

    Activations of a larger batch leave the caches of a CPU, which makes every picture slower.
    """
    scale = vae.config.scaling_factor
    parts = [
        vae.encode(to_tensor(pictures_NHWC[i : i + batch]).contiguous(memory_format=torch.channels_last)).latent_dist
        for i in range(0, len(pictures_NHWC), batch)
    ]
    latents_NCHW: torch.Tensor = torch.cat([part.mean.contiguous() for part in parts]) * scale
    return latents_NCHW


def batches(views_V: np.ndarray, training: Training, first_step: int) -> Iterator[tuple[int, np.ndarray]]:
    """(step, rows of the batch) from first_step on: epoch after epoch, every view once in each."""
    V, B = len(views_V), training.batch
    epoch, order = -1, views_V
    for step in range(first_step, training.steps):
        rows = []
        for position in range(step * B, (step + 1) * B):
            if position // V != epoch:
                epoch = position // V
                order = views_V[generator(training.seed, "epoch", epoch).permutation(V)]
            rows.append(order[position % V])
        yield step, np.array(rows)


class Trainer:
    """Text encoder and UNet in training; its whole state can be saved and loaded."""

    def __init__(self, training: Training, tokenizer: CLIPTokenizer) -> None:
        torch.manual_seed(training.seed)  # noqa: TID251 - initial weights come from the global generator
        self.training, self.tokenizer = training, tokenizer
        self.model = new_denoiser(len(tokenizer)).to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), training.lr, weight_decay=0.01, fused=True)
        a2_T = scaled_linear_alphas_cumprod(BETA_START, BETA_END, N_TIMESTEPS).float()
        self.a_T, self.sigma_T = a2_T.sqrt(), (1 - a2_T).sqrt()
        snr_T = a2_T / (1 - a2_T)
        of_x0_T = snr_T.clamp(max=training.max_snr) + training.floor * (snr_T + 1)
        # An error in epsilon is that in x0 times a / sigma; one in v is that in x0 over sigma.
        self.weight_T = of_x0_T / {"epsilon": snr_T, "v_prediction": snr_T + 1}[training.prediction]
        self.steps_done = 0

    def step(self, step: int, latents_BCHW: torch.Tensor, captions: list[str]) -> float:
        """One optimizer step; returns the loss."""
        training, draw = self.training, generator(self.training.seed, "step", step)
        t_B = torch.from_numpy(draw.integers(N_TIMESTEPS, size=len(captions)))
        noise = torch.from_numpy(draw.standard_normal(latents_BCHW.shape, dtype=np.float32))
        dropped = draw.random(len(captions)) < training.drop_caption
        kept = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
        ids = self.tokenizer(kept, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
        a, sigma = self.a_T[t_B][:, None, None, None], self.sigma_T[t_B][:, None, None, None]
        x_BCHW = (a * latents_BCHW + sigma * noise).contiguous(memory_format=torch.channels_last)
        text_BLE = self.model["text_encoder"](ids["input_ids"], return_dict=False)[0]
        found_BCHW = self.model["unet"](x_BCHW, t_B, encoder_hidden_states=text_BLE, return_dict=False)[0]
        wanted_BCHW = noise if training.prediction == "epsilon" else a * noise - sigma * latents_BCHW
        loss = (self.weight_T[t_B] * (found_BCHW - wanted_BCHW).square().mean((1, 2, 3))).mean()
        set_lr(self.optimizer, training.lr, step, training.steps, training.warmup)
        optimizer_step(self.optimizer, self.model, loss)
        self._average(min(training.ema, (1 + step) / (10 + step)))
        self.steps_done = step + 1
        return float(loss.item())

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        pairs = zip(self.averaged.parameters(), self.model.parameters(), strict=True)
        for average, weight in pairs:
            average.lerp_(weight, 1 - decay)

    def save(self, path: Path) -> None:
        """Write the whole state, in one step."""
        checkpoint.save(path, self._networks, self.optimizer, asdict(self.training), self.steps_done)

    def load(self, path: Path) -> None:
        """Go on from a state of the same settings. Raises UserError for others."""
        weights = list(self.model.parameters())
        self.steps_done = checkpoint.load(path, self._networks, self.optimizer, weights, asdict(self.training))

    @property
    def _networks(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model, "averaged": self.averaged}


def train_denoiser(
    trainer: Trainer,
    latents_NCHW: torch.Tensor,
    captions: list[str],
    views_V: np.ndarray,
    state: Path,
    log: Log,
) -> None:
    """Train from the state in a file, if there is one, to the last step; the averaged weights are the result."""
    training = trainer.training
    if state.exists():
        trainer.load(state)
    losses = []
    for step, rows in batches(views_V, training, trainer.steps_done):
        losses.append(trainer.step(step, latents_NCHW[rows], [captions[i] for i in rows]))
        if (step + 1) % training.log_every == 0:
            log.write("denoiser", step + 1, loss=float(np.mean(losses)))
            losses = []
        if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
            trainer.save(state)


def set_lr(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int, warmup: int) -> None:
    """Linear warm-up, then the peak, then a linear fall to zero over the second half."""
    rise = (step + 1) / min(warmup, max(1, steps // 4))
    fall = (steps - step) / (steps / 2)
    for group in optimizer.param_groups:
        group["lr"] = peak * min(1.0, rise, fall)


def optimizer_step(optimizer: torch.optim.Optimizer, model: torch.nn.Module, loss: torch.Tensor) -> None:
    """Move the weights against the gradient of a loss, clipped to length 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
