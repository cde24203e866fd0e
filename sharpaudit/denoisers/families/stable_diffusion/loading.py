"""From files to a tokenizer or a network, by the libraries' own loaders, which see exactly the files that were hashed.

A loader looks into a folder and takes what it finds: an index before the weights, an adapter, a tokenizer of another
kind, and other things in another version. So it gets a temporary folder of links to the files that the digest covers,
without the suffix of a variant, and there is nothing else to find. Nothing is looked up in the network, and no code of
a model is run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from sharpaudit.denoisers.families.stable_diffusion.weights import Weights
from sharpaudit.errors import UserError, printable

LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)


def load_files(kind: Any, folder: Path, part: str, links: Mapping[str, str], **options: Any) -> Any:
    """`kind` from exactly these files: the name that its loader knows, and the one in `folder`. Raises UserError."""
    where, name = folder / part, kind.__name__
    with naming(where, name), _staged(folder, links) as private, naming(where, name, private), _quiet():
        return kind.from_pretrained(private, local_files_only=True, **options)


def load_network(
    kind: Any, folder: Path, weights: Weights, device: torch.device, dtype: torch.dtype, **options: Any
) -> Any:
    """A frozen network for use, whole: every tensor of its files has found its place, and no place is left.

    A weight that its file does not hold would be random, one that the network does not know would be dropped.
    """
    links = {"config.json": f"{weights.part}/config.json"} | weights.links
    options |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    model, info = load_files(kind, folder, weights.part, links, **options)
    where = printable(str(folder / weights.part))
    missing, unknown = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise UserError(f"{where}: the weights lack {_some(missing)}, which config.json asks for")
    if unknown:
        lora = "; a LoRA is not applied: merge it into the weights" if "lora" in "".join(unknown).lower() else ""
        raise UserError(f"{where}: the weights hold {_some(unknown)}, which {kind.__name__} does not have{lora}")
    # Loaders rename tensors of older files: two that come to the same name would be taken for one.
    if len(weights.keys) != len(model.state_dict()):
        raise UserError(
            f"{where}: the weights hold {len(weights.keys)} tensors for {len(model.state_dict())} places of "
            f"{kind.__name__}: some are there twice, by an old and by a new name"
        )
    model.requires_grad_(False).eval()
    # In one precision, also where the file mixes several and the loader took its tensors as they are. The method of
    # torch itself: diffusers' own warns of every change of type.
    return torch.nn.Module.to(model, device, dtype).to(memory_format=torch.channels_last)


@contextmanager
def naming(where: Path, kind: str, private: Path | None = None) -> Iterator[None]:
    """Whatever a library makes of unfit files is a UserError with the part's place, also for what it saw as private."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # The tokenizers library raises Exception itself, no class of its own; what is none of these is a bug.
        if not isinstance(error, LOAD_ERRORS) and type(error) is not Exception:
            raise
        said = str(error).replace(str(private), str(where)) if private else str(error)
        reason = printable(" ".join(said.split()) or type(error).__name__)
        raise UserError(f"{printable(str(where))}: cannot be loaded as {kind}: {reason}") from error


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 1:,} more" if len(keys) > 1 else ""
    return printable(keys[0]) + more


@contextmanager
def _staged(folder: Path, links: Mapping[str, str]) -> Iterator[Path]:
    """A temporary folder that holds links to these files and nothing else."""
    with tempfile.TemporaryDirectory(prefix="sharpaudit-model-") as private:
        for name, file in links.items():
            (Path(private) / name).symlink_to((folder / file).absolute())
        yield Path(private)


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
