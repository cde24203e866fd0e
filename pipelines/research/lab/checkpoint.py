"""The whole state of a training in one file: networks, moments of the optimizer, and what else there is to know."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sharpaudit.errors import UserError


def save(
    path: Path,
    networks: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    steps_done: int,
) -> None:
    """Write the state as safetensors, in one step."""
    moments = optimizer.state_dict()["state"]
    tensors = {f"optimizer.{i}.{name}": value for i, held in moments.items() for name, value in held.items()}
    for part, network in networks.items():
        tensors |= {f"{part}.{name}": value for name, value in network.state_dict().items()}
    known = json.dumps({"steps_done": steps_done, "training": settings})
    attempt = path.with_suffix(".inprogress")
    save_file({name: value.contiguous() for name, value in tensors.items()}, attempt, {"state": known})
    attempt.replace(path)


def load(
    path: Path,
    networks: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    weights: list[torch.nn.Parameter],
    settings: Mapping[str, Any],
) -> int:
    """Put a state of the same settings back and return how many steps it has behind it. Raises UserError for others.

    weights: those that the optimizer moves, in its order.
    """
    with safe_open(path, "pt") as file:
        known = json.loads(file.metadata()["state"])
    if known["training"] != settings:
        raise UserError(f"{path}: the training there has other settings; name a new folder for --work")
    tensors = load_file(path)
    for part, network in networks.items():
        network.load_state_dict(_below(part, tensors))
    moments: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, value in _below("optimizer", tensors).items():
        i, _, key = name.partition(".")
        # The fused optimizer walks through memory: a moment must lie there as its weight does.
        laid_out = torch.empty_like(weights[int(i)]).copy_(value) if value.dim() else value
        moments[int(i)][key] = laid_out
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(moments), "param_groups": groups})
    return int(known["steps_done"])


def _below(part: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
