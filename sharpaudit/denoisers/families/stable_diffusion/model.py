"""Stable Diffusion 1 and 2 behind the contract of base.py: epsilon or v prediction, safetensors, no remote code.

The network computes in its own precision between a first and a last layer in float32 (precision.py). The
autoencoder always computes in float32. Of the scheduler only betas and prediction type count: sampling steps are
always "leading" with offset 1, as Stable Diffusion's pipeline enforces.

The adapter never switches gradients off: that is the caller's, who may differentiate in x and conditioning
(forward mode needs PyTorch's math attention).

Shapes: B prompts, C H W latent, L tokens, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

# By name: a lazy import inside a constructor would keep its frame, and with it the model, alive.
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import BatchEncoding, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sharpaudit.denoisers.attention import BIAS, SCALE, cross_attention_layers, recorded, steered
from sharpaudit.denoisers.base import SCREEN_STEPS, AttentionRequest, Conditioning, NoiseLevel, Prediction, Tokens
from sharpaudit.denoisers.decoding import resized
from sharpaudit.denoisers.families.stable_diffusion import snapshot
from sharpaudit.denoisers.families.stable_diffusion.loading import load_files, load_network, naming
from sharpaudit.denoisers.families.stable_diffusion.precision import keep_ends_exact
from sharpaudit.denoisers.families.stable_diffusion.vocabulary import require_vocabulary
from sharpaudit.denoisers.files import read_json
from sharpaudit.denoisers.schedule import leading_timesteps, linear_alphas_cumprod, scaled_linear_alphas_cumprod
from sharpaudit.devices import forbid_tf32
from sharpaudit.errors import UserError, printable
from sharpaudit.seeds import digest
from sharpaudit.tables.liveness import answered

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
        tree = read_json(path)
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

    def level(self, t: float) -> NoiseLevel:
        """The noise level of timestep t, 0 to T - 1."""
        if t not in range(len(self.alphas_cumprod)):
            raise ValueError(f"timestep {t} is not in 0..{len(self.alphas_cumprod) - 1}")
        a_squared = float(self.alphas_cumprod[int(t)])
        return NoiseLevel(math.sqrt(a_squared), math.sqrt(1 - a_squared))

    def timesteps(self, n_steps: int) -> list[int]:
        """n_steps of the T timesteps, falling. Raises UserError where offset 1 would leave the range."""
        n_train = len(self.alphas_cumprod)
        if not 1 <= n_steps < n_train:
            raise UserError(
                f"samples.steps = {n_steps}: this model was trained on {n_train} steps; use 1 to {n_train - 1}"
            )
        return leading_timesteps(n_train, n_steps, offset=1)

    def x0_hat(self, x_BCHW: torch.Tensor, output_BCHW: torch.Tensor, t: float) -> torch.Tensor:
        """The clean latent that the network's output means."""
        return self.level(t).x0_hat(x_BCHW, output_BCHW, self.prediction_type)


class DiffusionTokenizer:
    """The CLIP tokenizer of a diffusers folder, without the model's weights."""

    def __init__(self, folder: Path) -> None:
        files = snapshot.tokenizer_files(folder)
        self.digest = snapshot.digest(folder, files)
        require_vocabulary(folder, files)
        length = read_json(folder / snapshot.TOKENIZER_CONFIG).get("model_max_length")
        if not isinstance(length, int) or not 2 < length <= 10_000:
            raise UserError(
                f"{folder / snapshot.TOKENIZER_CONFIG}: model_max_length = {length!r}: the number of tokens that the "
                "text encoder sees is expected, 77 for Stable Diffusion"
            )
        self.max_length = length
        self._folder = folder
        links = {Path(name).name: name for name in files}
        self._tokenizer = load_files(CLIPTokenizer, folder, "tokenizer", links)
        with naming(folder / "tokenizer", CLIPTokenizer.__name__):
            self._try_out()

    def require_places(self, n_ids: int, n_positions: int) -> None:
        """Raise UserError where a prompt could give a token id of n_ids or more, or more tokens than n_positions."""
        beyond = {i: token for token, i in self._tokenizer.get_vocab().items() if i >= n_ids}
        if beyond:
            last = max(beyond)
            raise UserError(
                f"{printable(str(self._folder))}: the tokenizer gives {printable(repr(beyond[last]))} the id {last}, "
                f"the text encoder has embeddings for ids below {n_ids}; they are parts of different models, or a "
                "token was added to the tokenizer alone"
            )
        if self.max_length > n_positions:
            raise UserError(
                f"{printable(str(self._folder))}: the tokenizer gives {self.max_length} tokens, the text encoder takes "
                f"{n_positions}; correct model_max_length in {snapshot.TOKENIZER_CONFIG}"
            )

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

    def _try_out(self) -> None:
        """What would fail at a prompt in the night fails here: no padding, an unknown token that is unknown itself."""
        shape = self.ids(["", "a " * self.max_length])["input_ids"].shape
        if shape != (2, self.max_length):
            raise ValueError(f"gives {tuple(shape)} ids for two prompts of {self.max_length} tokens")
        backend = self._tokenizer.backend_tokenizer
        if self._tokenizer.unk_token not in backend.get_vocab(with_added_tokens=False):
            raise ValueError(f"its unk_token {self._tokenizer.unk_token!r} is not in its vocabulary")

    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        """Lengths before the cut, and what the text encoder sees after it."""
        if not prompts:
            return []
        lengths = [len(ids) for ids in self._tokenizer(list(prompts), verbose=False)["input_ids"]]
        # Padded: "cat<|endoftext|>" differs from "cat" in its tokens, yet not in what the text encoder sees.
        seen = self.ids(prompts)["input_ids"].tolist()
        return [Tokens(n, n > self.max_length, digest(*ids).hex()[:32]) for n, ids in zip(lengths, seen, strict=True)]


def fitting_tokenizer(folder: Path) -> DiffusionTokenizer:
    """The tokenizer of a folder. Raises UserError where it is not that of its text encoder, by the configurations."""
    tokenizer = DiffusionTokenizer(folder)
    config = load_files(CLIPTextConfig, folder, "text_encoder", {"config.json": "text_encoder/config.json"})
    tokenizer.require_places(config.vocab_size, config.max_position_embeddings)
    return tokenizer


class DiffusionDenoiser:
    """A Stable Diffusion 1 or 2 model from a diffusers folder, on `device`, its network in `dtype`."""

    steers_attention = True
    """`predict` looks at the tensors of a conditioning that steer attention (denoisers/attention.py)."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        parts = snapshot.snapshot(folder)
        self.digest = snapshot.digest(folder, parts.files)
        self.device = device
        self._dtype = dtype
        self._schedule = Schedule.from_file(folder / snapshot.SCHEDULER_CONFIG)
        self._tokenizer = DiffusionTokenizer(folder)
        if device.type == "cuda":
            forbid_tf32()
        weights = parts.weights
        # sdpa by name: a config may ask for another attention, even for one that is downloaded.
        text_encoder = load_network(
            CLIPTextModel, folder, weights["text_encoder"], device, dtype, attn_implementation="sdpa"
        )
        self._text_encoder = text_encoder
        self._unet = load_network(UNet2DConditionModel, folder, weights["unet"], device, dtype, low_cpu_mem_usage=False)
        keep_ends_exact(self._unet)
        self._vae = load_network(AutoencoderKL, folder, weights["vae"], device, torch.float32, low_cpu_mem_usage=False)
        self.latent_shape = _latent_shape(folder, self._unet.config, self._vae.config)
        self.attention_layers = tuple(cross_attention_layers(self._unet))
        self._check_text(folder)

    @property
    def tokenizer(self) -> DiffusionTokenizer:
        """What makes tokens of prompts."""
        return self._tokenizer

    @property
    def unet(self) -> torch.nn.Module:
        """The network, for who times it in other forms."""
        return cast(torch.nn.Module, self._unet)

    @property
    def text_encoder(self) -> torch.nn.Module:
        """The text encoder, for who times it by itself."""
        return cast(torch.nn.Module, self._text_encoder)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The text encoder's last hidden state, with shape (B, L, E); equal prompts are encoded once."""
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        inputs = self._tokenizer.ids(list(unique)).to(self.device)
        mask = inputs["attention_mask"] if getattr(self._text_encoder.config, "use_attention_mask", False) else None
        hidden_BLE = self._text_encoder(inputs["input_ids"], attention_mask=mask, return_dict=False)[0]
        return Conditioning({"prompt": hidden_BLE}).select([unique[prompt] for prompt in prompts])

    def unconditional(self, n: int = 1) -> Conditioning:
        """The empty prompt, which Stable Diffusion is trained with."""
        return self.encode([""] * n)

    def predict(
        self, x_BCHW: torch.Tensor, t: float, conditioning: Conditioning, *, record: AttentionRequest | None = None
    ) -> Prediction:
        """One network evaluation per row."""
        x_BCHW = x_BCHW.to(self.device, torch.float32)
        nothing: AbstractContextManager[dict[str, torch.Tensor]] = nullcontext({})
        with nothing if record is None else recorded(self._unet, record, x_BCHW.shape[2:]) as maps:
            output_BCHW = self.network(x_BCHW, t, conditioning)
        x0_BCHW = self._schedule.x0_hat(x_BCHW, output_BCHW, t)
        answered()
        return Prediction(x0_BCHW.contiguous(), maps)

    def network(self, x_BCHW: torch.Tensor, t: float, conditioning: Conditioning) -> torch.Tensor:
        """What the UNet itself gives, float32 with shape (B, C, H, W)."""
        tensors = conditioning.tensors
        nothing: AbstractContextManager[None] = nullcontext()
        with steered(self._unet, tensors[SCALE], tensors[BIAS]) if SCALE in tensors else nothing:
            output_BCHW: torch.Tensor = self._unet(
                x_BCHW.to(torch.float32, memory_format=torch.channels_last),
                torch.tensor(t, device=self.device),
                encoder_hidden_states=tensors["prompt"].to(self._dtype),
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

    def latents_of(self, pictures_BCHW: torch.Tensor) -> torch.Tensor:
        """The middle of what the autoencoder's encoder says."""
        config = self._vae.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        height, width = (factor * side for side in self.latent_shape[1:])
        own_BCHW = resized(pictures_BCHW.to(self.device, torch.float32), height, width) * 2 - 1
        middle: torch.Tensor = self._vae.encode(own_BCHW.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        answered()
        latents_BCHW: torch.Tensor = (middle - (config.shift_factor or 0.0)).contiguous() * config.scaling_factor
        return latents_BCHW

    def level(self, t: float) -> NoiseLevel:
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
        n_ids = self._text_encoder.get_input_embeddings().num_embeddings
        self._tokenizer.require_places(n_ids, config.max_position_embeddings)
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
        case int(side) if side > 0:
            return unet.in_channels, side, side
        case [int(height), int(width)] if min(height, width) > 0:
            return unet.in_channels, height, width
    raise UserError(
        f"{folder / 'unet'}: sample_size = {unet.sample_size!r}: the side of the latent is expected, such as 64"
    )
