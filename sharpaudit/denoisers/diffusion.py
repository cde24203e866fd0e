"""Stable Diffusion 1 and 2 behind the contract of base.py: epsilon or v prediction, safetensors, no remote code.

With x = a x0 + sigma eps and a^2 + sigma^2 = 1, the network's output becomes

    epsilon:       x0_hat = (x - sigma eps) / a
    v_prediction:  x0_hat = a x - sigma v            v = a eps - sigma x0 (Salimans and Ho, ICLR 2022)

The network computes in its own precision between a first and a last layer in float32 (precision.py). The
autoencoder always computes in float32. Of the scheduler only betas and prediction type count: sampling steps are
always "leading" with offset 1, as Stable Diffusion's pipeline enforces.

The adapter never switches gradients off: that is the caller's, who may differentiate in x and conditioning
(forward mode needs PyTorch's math attention).

Shapes: B prompts, C H W latent, L tokens, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import torch
import transformers

# By name: a lazy import inside a constructor would keep its frame, and with it the model, alive.
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from transformers import BatchEncoding, CLIPTextModel, CLIPTokenizer

from sharpaudit.denoisers import snapshot
from sharpaudit.denoisers.attention import cross_attention_layers, recorded
from sharpaudit.denoisers.base import SCREEN_STEPS, Conditioning, NoiseLevel, Prediction, Tokens
from sharpaudit.denoisers.devices import forbid_tf32
from sharpaudit.denoisers.precision import keep_ends_exact
from sharpaudit.denoisers.pulse import answered
from sharpaudit.denoisers.schedule import leading_timesteps, linear_alphas_cumprod, scaled_linear_alphas_cumprod
from sharpaudit.errors import UserError, printable
from sharpaudit.seeds import digest

LOAD_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, SafetensorError)
NOT_SD = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
"""UNet options whose extra inputs Stable Diffusion 1 and 2 do not have (SDXL, LCM and others do)."""


class SchedulerConfig(BaseModel):
    """What counts of scheduler_config.json; none of it has a default that would be right by luck."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    num_train_timesteps: int = Field(gt=SCREEN_STEPS, le=100_000)
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    beta_schedule: Literal["scaled_linear", "linear"]
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """Absent in files older than v prediction."""
    trained_betas: None = None
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True)
class Schedule:
    """Noise levels and sampling steps. alphas_cumprod: a^2 of each training timestep, float64, shape (T,)."""

    alphas_cumprod: torch.Tensor
    prediction_type: Literal["epsilon", "v_prediction"]

    @staticmethod
    def from_file(path: Path) -> Schedule:
        """The schedule of a scheduler_config.json. Raises UserError."""
        tree = snapshot.read_json(path)
        try:
            config = SchedulerConfig.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}: {name} = {printable(repr(tree.get(name)))}: {printable(first['msg'])}") from error
        if config.rescale_betas_zero_snr:
            raise UserError(
                f"{path}: rescale_betas_zero_snr = true: the first step of such a model holds no signal at all, so no "
                "score either to compare prompts by; models of zero terminal SNR are not supported"
            )
        make = scaled_linear_alphas_cumprod if config.beta_schedule == "scaled_linear" else linear_alphas_cumprod
        alphas_cumprod = make(config.beta_start, config.beta_end, config.num_train_timesteps)
        return Schedule(alphas_cumprod, config.prediction_type)

    def level(self, t: int) -> NoiseLevel:
        """The noise level of timestep t, 0 to T - 1."""
        if not 0 <= t < len(self.alphas_cumprod):
            raise ValueError(f"timestep {t} is not in 0..{len(self.alphas_cumprod) - 1}")
        a_squared = float(self.alphas_cumprod[t])
        return NoiseLevel(math.sqrt(a_squared), math.sqrt(1 - a_squared))

    def timesteps(self, n_steps: int) -> list[int]:
        """n_steps of the T timesteps, falling. Raises UserError where offset 1 would leave the range."""
        n_train = len(self.alphas_cumprod)
        if not 1 <= n_steps < n_train:
            raise UserError(
                f"samples.steps = {n_steps}: this model was trained on {n_train} steps; use 1 to {n_train - 1}"
            )
        return leading_timesteps(n_train, n_steps, offset=1)

    def x0_hat(self, x_BCHW: torch.Tensor, output_BCHW: torch.Tensor, t: int) -> torch.Tensor:
        """The clean latent that the network's output means."""
        level = self.level(t)
        if self.prediction_type == "epsilon":
            return (x_BCHW - level.sigma * output_BCHW) / level.a
        return level.a * x_BCHW - level.sigma * output_BCHW


class DiffusionTokenizer:
    """The CLIP tokenizer of a diffusers folder, without the model's weights."""

    def __init__(self, folder: Path) -> None:
        self.digest = snapshot.digest(folder, snapshot.tokenizer_files(folder))
        config = snapshot.read_json(folder / snapshot.TOKENIZER_CONFIG)
        length = config.get("model_max_length")
        if not isinstance(length, int) or not 2 < length <= 10_000:
            raise UserError(
                f"{folder / snapshot.TOKENIZER_CONFIG}: model_max_length = {length!r}: the number of tokens that the "
                "text encoder sees is expected, 77 for Stable Diffusion"
            )
        self.max_length = length
        self._tokenizer = _load(CLIPTokenizer, folder / "tokenizer")

    def ids(self, prompts: Sequence[str]) -> BatchEncoding:
        """input_ids and attention_mask with shape (B, L), cut and padded to the model's length."""
        return self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
            verbose=False,
        )

    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        """Lengths before the cut, and what the text encoder sees after it."""
        if not prompts:
            return []
        lengths = [len(ids) for ids in self._tokenizer(list(prompts), verbose=False)["input_ids"]]
        # Padded: "cat<|endoftext|>" differs from "cat" in its tokens, yet not in what the text encoder sees.
        seen = self.ids(prompts)["input_ids"].tolist()
        return [Tokens(n, n > self.max_length, digest(*ids).hex()[:32]) for n, ids in zip(lengths, seen, strict=True)]


class DiffusionDenoiser:
    """A Stable Diffusion 1 or 2 model from a diffusers folder, on `device`, its network in `dtype`."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.digest = snapshot.digest(folder, snapshot.model_files(folder))
        self.device = device
        self._dtype = dtype
        self._schedule = Schedule.from_file(folder / snapshot.SCHEDULER_CONFIG)
        self._tokenizer = DiffusionTokenizer(folder)
        if device.type == "cuda":
            forbid_tf32()
        # sdpa by name: a config may ask for another attention, even for one that is downloaded.
        self._text_encoder = _network(CLIPTextModel, folder / "text_encoder", device, dtype, attn_implementation="sdpa")
        self._unet = _network(UNet2DConditionModel, folder / "unet", device, dtype, low_cpu_mem_usage=False)
        keep_ends_exact(self._unet)
        self._vae = _network(AutoencoderKL, folder / "vae", device, torch.float32, low_cpu_mem_usage=False)
        self.latent_shape = _latent_shape(folder, self._unet.config, self._vae.config)
        self.records_attention = bool(cross_attention_layers(self._unet))
        self._check_text(folder)

    @property
    def unet(self) -> torch.nn.Module:
        """The network, for who times it in other forms."""
        return cast(torch.nn.Module, self._unet)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The text encoder's last hidden state, with shape (B, L, E); equal prompts are encoded once."""
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        inputs = self._tokenizer.ids(list(unique)).to(self.device)
        mask = inputs["attention_mask"] if getattr(self._text_encoder.config, "use_attention_mask", False) else None
        hidden_BLE = self._text_encoder(inputs["input_ids"], attention_mask=mask, return_dict=False)[0]
        return Conditioning({"prompt": hidden_BLE}).select([unique[prompt] for prompt in prompts])

    def predict(
        self, x_BCHW: torch.Tensor, t: int, conditioning: Conditioning, *, record_attention: bool = False
    ) -> Prediction:
        """One network evaluation per row."""
        x_BCHW = x_BCHW.to(self.device, torch.float32)
        nothing: AbstractContextManager[list[torch.Tensor]] = nullcontext([])
        with recorded(self._unet) if record_attention else nothing as maps:
            output_BCHW = self.network(x_BCHW, t, conditioning)
        x0_BCHW = self._schedule.x0_hat(x_BCHW, output_BCHW, t)
        answered()
        return Prediction(x0_BCHW.contiguous(), maps[0] if maps else None)

    def network(self, x_BCHW: torch.Tensor, t: int, conditioning: Conditioning) -> torch.Tensor:
        """What the UNet itself gives, float32 with shape (B, C, H, W)."""
        output_BCHW: torch.Tensor = self._unet(
            x_BCHW.to(torch.float32, memory_format=torch.channels_last),
            torch.tensor(t, device=self.device),
            encoder_hidden_states=conditioning.tensors["prompt"].to(self._dtype),
            return_dict=False,
        )[0]
        return output_BCHW

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """The autoencoder's pictures."""
        scale, shift = self._vae.config.scaling_factor, self._vae.config.shift_factor or 0.0
        z_BCHW = latents_BCHW.to(self.device, torch.float32) / scale + shift
        z_BCHW = z_BCHW.contiguous(memory_format=torch.channels_last)
        pictures: torch.Tensor = self._vae.decode(z_BCHW, return_dict=False)[0]
        answered()
        return (pictures / 2 + 0.5).clamp(0, 1).cpu().contiguous()

    def level(self, t: int) -> NoiseLevel:
        """The level of the scheduler's betas, in float64."""
        return self._schedule.level(t)

    def timesteps(self, n_steps: int) -> list[int]:
        """Leading spacing, offset 1. Raises UserError for more steps than the model was trained on."""
        return self._schedule.timesteps(n_steps)

    def first_timestep(self) -> int:
        """981 for 1000 training steps."""
        return self._schedule.timesteps(SCREEN_STEPS)[0]

    def noisiest_timestep(self) -> int:
        """999 for 1000 training steps."""
        return len(self._schedule.alphas_cumprod) - 1

    def _check_text(self, folder: Path) -> None:
        config = self._text_encoder.config
        if self._tokenizer.max_length > config.max_position_embeddings:
            raise UserError(
                f"{folder}: the tokenizer gives {self._tokenizer.max_length} tokens, the text encoder takes "
                f"{config.max_position_embeddings}; correct model_max_length in {snapshot.TOKENIZER_CONFIG}"
            )
        if config.hidden_size != self._unet.config.cross_attention_dim:
            raise UserError(
                f"{folder}: the text encoder gives {config.hidden_size} numbers a token, the unet takes "
                f"{self._unet.config.cross_attention_dim}; they are parts of different models"
            )


def _latent_shape(folder: Path, unet: Any, vae: Any) -> tuple[int, int, int]:
    """(C, H, W) of a latent, of a plain text-to-image model. Raises UserError for any other kind."""
    for name in NOT_SD:
        if unet.get(name) is not None:
            raise UserError(f"{folder / 'unet'}: {name} = {unet[name]!r}: not of the Stable Diffusion 1 or 2 family")
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise UserError(
            f"{folder}: the unet takes {unet.in_channels} and gives {unet.out_channels} channels for latents of "
            f"{vae.latent_channels}; only text-to-image models are audited, no inpainting or upscaling ones"
        )
    match unet.sample_size:
        case int(side):
            return unet.in_channels, side, side
        case [int(height), int(width)]:
            return unet.in_channels, height, width
    raise UserError(
        f"{folder / 'unet'}: sample_size = {unet.sample_size!r}: the side of the latent is expected, such as 64"
    )


def _network(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
    """A frozen network for use, whole: a weight that its file does not hold would be random."""
    model, info = _load(kind, folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{folder}: the weights lack {missing[0]}{more}, which config.json asks for")
    return model.requires_grad_(False).eval().to(device=device, memory_format=torch.channels_last)


def _load(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        with _quiet():
            return kind.from_pretrained(folder, local_files_only=True, **options)
    except LOAD_ERRORS as error:
        reason = printable(" ".join(str(error).split()))
        raise UserError(f"{folder}: cannot be loaded as {kind.__name__}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' progress bars and log lines below errors are off, and afterwards as they were."""
    logs = (transformers.utils.logging, diffusers.utils.logging)
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, verbosity, bar in before:
            log.set_verbosity(verbosity)
            if bar:
                log.enable_progress_bar()
