"""The model and the index that a run is bound to, as its workers load them.

A worker may start hours after the run began, in place of one that died. Were the weights overwritten in the
meantime, its rows would stand under a fingerprint that is not theirs; so both are held against run.json on loading.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.stages.base import Inputs
from pipelines.stages.search import SampleSearch
from sharpaudit.config import AuditConfig, MatchesConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser, placement
from sharpaudit.embedders.base import Describer, Embedder, embedder, open_embedder
from sharpaudit.embedders.weights import Shelf
from sharpaudit.errors import UserError, printable
from sharpaudit.matches.approximation import OpenStructure, open_structure
from sharpaudit.matches.index import Hashed, ReferenceIndex, open_index
from sharpaudit.tables.runs import RunFolder


def run_model(run: RunFolder, config: AuditConfig) -> Denoiser:
    """The model. Raises UserError where it, its device or its precision is not what the run began with."""
    _require_place(run, config)
    denoiser = load_denoiser(config.model)
    where = config.model.path or f"{config.model.repo} at {config.model.revision}"
    _require(run, "model_digest", denoiser.digest, f"model {printable(str(where))}")
    return denoiser


def run_index(run: RunFolder, config: AuditConfig) -> ReferenceIndex:
    """The reference index. Raises UserError where it is no longer the one that the run began with."""
    index = index_of(config, hashed(run))
    _require(run, "index_digest", index.digest, f"index {printable(str(config.matches.index))}")
    return index


def run_search(run: RunFolder, config: AuditConfig) -> SampleSearch:
    """Search in the index that the run began with. Raises UserError where it or its structure is no longer the same."""
    index = run_index(run, config)
    structure = structure_of(index, config, hashed(run))
    if structure is not None:
        _require(run, "index_search", structure.digest, f"the structure of index {printable(str(index.path))}")
    second = second_of(index, config)
    return SampleSearch.of(index, second, structure, config)


def run_alignment(run: RunFolder, config: AuditConfig) -> Describer | None:
    """What holds pictures against texts, open; None where nothing does. Raises UserError where it is no longer the
    same."""
    card = alignment_of(config)
    if card is None:
        return None
    _require(run, "alignment_digest", card.digest, f"weights of {card.name}")
    return open_embedder(card, config.matches.batch_size, config.model.device)


def alignment_of(config: AuditConfig) -> Embedder | None:
    """The card of the embedder that `mitigation.alignment` names, where methods are tried. Raises UserError."""
    name = config.mitigation.alignment
    if name is None or not config.mitigation.methods:
        return None
    card = embedder(name, shelf_of(config.matches))
    if not card.texts:
        raise UserError(
            f'mitigation.alignment = "{printable(name)}": this embedder describes no texts; name one that does, such '
            'as "open_clip:ViT-H-14"'
        )
    return card


def second_of(index: ReferenceIndex, config: AuditConfig) -> ReferenceIndex | None:
    """An open index with the vectors of the embedder that verifies; None where none does. Raises UserError."""
    name, matches = config.matches.verified_by, config.matches
    known = Hashed(index.digest, index.opened)
    return None if name is None else open_index(index.path, name, shelf_of(matches), known)


def structure_of(index: ReferenceIndex, config: AuditConfig, known: Hashed | None = None) -> OpenStructure | None:
    """The approximate structure that a configuration names, None for exact search. Raises UserError."""
    kind = config.matches.search
    return None if kind == "exact" else open_structure(index, kind, known, torch.get_num_threads())


def index_of(config: AuditConfig, known: Hashed | None = None) -> ReferenceIndex:
    """The reference index that a configuration names. known: files that need not be hashed. Raises UserError."""
    return open_index(Path(config.matches.index), config.matches.profile, shelf_of(config.matches), known)


def hashed(run: RunFolder) -> Hashed | None:
    """The files of the index that the run began with, as they were when they were hashed; None where it did not say."""
    facts = (run.record() or {}).get("facts", {})
    files = facts.get("index_files")
    return None if files is None else Hashed(facts["index_digest"], files)


def hashed_for(inputs: Inputs) -> Hashed:
    """The files of the index that `inputs` were taken from, so that whoever opens it next need not hash them."""
    return Hashed(inputs.index_digest, inputs.index_files or {})


def shelf_of(matches: MatchesConfig) -> Shelf:
    """Where the weights of embedders lie."""
    return Shelf(None if matches.weights is None else Path(matches.weights), tuple(matches.weights_sha256))


def _require_place(run: RunFolder, config: AuditConfig) -> None:
    """Refuse a worker that sees other devices than the driver reckoned with: its rows would be in another precision."""
    device, dtype = placement(config.model)
    here = (device.type, str(dtype).removeprefix("torch."))
    facts = (run.record() or {})["facts"]
    if here != (facts["device"], facts["dtype"]):
        raise UserError(
            f"a worker would compute on {here[0]} in {here[1]}, but the run began for {facts['device']} in "
            f"{facts['dtype']}: name model.device and model.dtype, and give each worker its GPU share with run.num_gpus"
        )


def _require(run: RunFolder, name: str, found: str, what: str) -> None:
    record = run.record()
    began = record["facts"][name] if record else ""
    if found != began:
        raise UserError(
            f"{what}: changed while the run was at work (digest {found[:16]}, the run began with {began[:16]}); "
            "nothing was made with the new one: put the old one back and give the same command, "
            "or name a new folder with --out"
        )
