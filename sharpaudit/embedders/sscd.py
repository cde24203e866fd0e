"""SSCD (Pizzi et al., CVPR 2022): descriptors of pictures that were trained to tell copies, edited ones among them.

A ResNet whose last features are pooled by generalised means, (mean of x^3)^(1/3), and mapped linearly to a unit vector.
The literature compares scores of three preparations under one name, so each is an embedder of its own:

    sscd-disc-mixup-320       both sides to 320 pixels, as the authors recommend
    sscd-disc-mixup-288       the shorter side to 288, the authors' other recommendation
    sscd-disc-large-224-05    256, the middle 224, channels from -1 to 1: what most papers on memorisation used

Weights are read in the three forms in which they are found: TorchScript, which is a program and runs only where its
digest is vouched for; a state dictionary with torchvision's names, into the network below; and ONNX.

Shapes: B pictures of a batch, D dimension.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharpaudit.devices import forbid_tf32
from sharpaudit.embedders.base import Describer, Embedder, Needs
from sharpaudit.embedders.network import Network, NetworkDescriber
from sharpaudit.embedders.preparation import Preparation
from sharpaudit.embedders.weights import Shelf, Weights, find_weights
from sharpaudit.errors import UserError, printable
from sharpaudit.images import Pixels, sha256_hex
from sharpaudit.tables.records import digest_of

LISTED = {
    "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56": "sscd_disc_mixup.torchscript.pt, 98,791,638 "
    "bytes, as many public projects pin it; its authors publish no digest"
}
"""Digests of weights, with where each is from."""
MIXUP, LARGE = "sscd_disc_mixup", "sscd_disc_large"
DIMENSIONS = {MIXUP: 512, LARGE: 1024}


@dataclass(frozen=True)
class Sscd(Embedder):
    """model: whose weights; their files are called so, with an end of FORMS."""

    name: str
    model: str
    preparation: Preparation
    weights: Weights | None = None

    version = 1
    licence = "the code of SSCD is under the MIT licence; its authors say nothing of the weights' terms apart"

    @property
    def dimension(self) -> int:  # type: ignore[override]
        """Of the model's vectors."""
        return DIMENSIONS[self.model]

    @property
    def digest(self) -> str:  # type: ignore[override]
        """Covers the preparation and, once they are known, the weights."""
        weights = self.weights and self.weights.sha256
        return digest_of([self.model, self.version, asdict(self.preparation), weights])

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """The weights and, for those in ONNX, what runs them."""
        packages = ("onnxruntime",) if self.weights and self.weights.path.suffix == ".onnx" else ()
        return Needs(packages, memory_bytes=2**31)

    def with_weights(self, shelf: Shelf) -> Sscd:
        """The card of the weights on the shelf. Raises UserError where there are none that somebody vouches for."""
        files = [self.model + form for form in FORMS]
        return replace(self, weights=find_weights(self.name, files, LISTED, shelf))

    def open(self, device: torch.device, batch_size: int) -> Describer:
        """The describer. Raises UserError for weights that are not those of this network."""
        if self.weights is None:
            raise ValueError(f"{self.name}: with_weights comes first")
        read = FORMS[self.weights.path.name.removeprefix(self.model)]
        forbid_tf32()
        network = read(self, self.weights.path, device)
        return NetworkDescriber(self.name, self.dimension, network, batch_size, self.preparation.one_size)


def new_network(model: str) -> torch.nn.Module:
    """An untrained network of a model, its weights called as in the published state dictionaries.

    Takes (B, 3, H, W), gives (B, D) before it is scaled to length 1.
    """
    from torchvision.models.resnet import Bottleneck, ResNet

    # The large one is as Classy Vision has ResNeXt101: 32 groups of 4, where torchvision's have 8.
    layers, groups = ([3, 4, 6, 3], {}) if model == MIXUP else ([3, 4, 23, 3], {"groups": 32, "width_per_group": 4})
    backbone = ResNet(Bottleneck, layers, num_classes=DIMENSIONS[model], **groups)
    backbone.avgpool = _GeneralisedMean()
    return torch.nn.ModuleDict({"backbone": backbone})


class _GeneralisedMean(torch.nn.Module):
    """Of each channel over its pixels, with the exponent 3 (Radenovic et al., 2018)."""

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return features_BCHW.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)


def _state(card: Sscd, path: Path, device: torch.device) -> Network:
    network = new_network(card.model)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))  # noqa: TID251 - published so
    except Exception as error:
        # Of a file that is something else, PyTorch raises whatever it meets.
        raise _other(card, path, error) from error
    return _on_tensors(card, network["backbone"].eval().to(device), device)  # type: ignore[index]


def _torchscript(card: Sscd, path: Path, device: torch.device) -> Network:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated; these weights are published in it
            network = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except Exception as error:
        # As for a state dictionary.
        raise _other(card, path, error) from error
    return _on_tensors(card, network, device)


def _on_tensors(card: Sscd, network: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Network:
    return lambda pictures: network(card.preparation.scaled([*map(card.preparation.cut, pictures)]).to(device))


def _onnx(card: Sscd, path: Path, device: torch.device) -> Network:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    there = runtime.get_available_providers()
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    providers = [name for name in (*wanted, "CPUExecutionProvider") if name in there]
    data = path.read_bytes()
    if card.weights is not None and sha256_hex(data) != card.weights.sha256:
        raise UserError(f"{printable(str(path))}: changed after it was hashed; give the same command again")
    try:
        # Of bytes, so that no other file is read that the graph may name.
        session = runtime.InferenceSession(data, options, providers=providers)
    except Exception as error:
        # The classes of its errors are not public.
        raise _other(card, path, error) from error
    asked = session.get_inputs()[0]

    def network(pictures: Sequence[Pixels]) -> torch.Tensor:
        cut = [card.preparation.cut(picture) for picture in pictures]
        # Some networks scale pictures themselves, and take them as they are stored.
        given = np.stack(cut) if asked.type == "tensor(uint8)" else card.preparation.scaled(cut).numpy()
        try:
            return torch.from_numpy(session.run(None, {asked.name: given})[0])
        except Exception as error:
            if "memory" in str(error).lower():
                raise torch.OutOfMemoryError(str(error)) from error
            # As above; most of all, of a network that takes pictures of one size alone.
            raise _other(card, path, error) from error

    return network


def _other(card: Sscd, path: Path, error: Exception) -> UserError:
    told = printable(" ".join(str(error).split())[:200] or type(error).__name__)
    return UserError(f'{printable(str(path))}: not weights of embedder "{card.name}": {told}')


FORMS: dict[str, Callable[[Sscd, Path, torch.device], Network]] = {
    ".torchscript.pt": _torchscript,
    ".torchvision.pt": _state,
    ".onnx": _onnx,
}
"""Ends of the names of files, in the order in which they are looked for."""
MIXUP_320 = Sscd("sscd-disc-mixup-320", MIXUP, Preparation(320, square=True))
MIXUP_288 = Sscd("sscd-disc-mixup-288", MIXUP, Preparation(288, square=False))
LARGE_224 = Sscd(
    "sscd-disc-large-224-05", LARGE, Preparation(256, square=False, crop=224, mean=(0.5,) * 3, std=(0.5,) * 3)
)
