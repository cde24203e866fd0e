"""What an audit stands on before it begins: digests of outside inputs, choices for this machine, identities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.stages import flow, ingest, require_views
from pipelines.stages.base import Inputs, identity
from pipelines.stages.inputs import alignment_of, index_of, second_of, structure_of
from sharpaudit import plugs
from sharpaudit.config import AuditConfig
from sharpaudit.denoisers.load import family_of, load_tokenizer, model_digest, model_files, placement
from sharpaudit.errors import UserError
from sharpaudit.matches.index import Hashed
from sharpaudit.plugs import EMBEDDERS, FAMILIES, METRICS, MITIGATIONS, SOLVERS, STAGES, Plugs
from sharpaudit.tables.runs import Identity


def inputs_of(config: AuditConfig, *, alone: bool = False, known: Hashed | None = None) -> Inputs:
    """The digests of outside inputs and the choices of device and precision. Raises UserError for what is not there.

    alone: whether this process computes itself, whatever the configuration says of workers. known: files of the index
    that need not be hashed.
    """
    require_views(config, flow(config))
    over_ray = config.run.executor == "ray" and not alone
    elsewhere = over_ray and config.run.address is not None and config.run.num_gpus > 0
    device, dtype = placement(config.model, gpus_elsewhere=elsewhere)
    if device.type == "cuda" and over_ray and config.run.num_gpus == 0:
        raise UserError(
            "run.num_gpus = 0: the ray workers would see no GPU although the model is on cuda; give each its share, "
            'or set model.device = "cpu"'
        )
    index = index_of(config, known)
    second, structure = second_of(index, config), structure_of(index, config, known)
    alignment = alignment_of(config)
    used = [index, *([] if second is None else [second])]
    opened = [part.opened for part in used] + ([] if structure is None else [structure.opened])
    return Inputs(
        model_digest=model_digest(config.model),
        tokenizer_digest=load_tokenizer(config.model).digest,
        index_digest=index.digest,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        model_files=model_files(config.model),
        index_holds=index.holding,
        index_weights={part.embedder.name: part.weights for part in used if part.weights is not None},
        index_search=None if structure is None else structure.digest,
        alignment_digest=None if alignment is None else alignment.digest,
        index_files={name: list(found) for files in opened for name, found in files.items()},
        plugs=plugs.foreign(named_plugs(config)),
    )


def named_plugs(config: AuditConfig) -> Iterator[tuple[Plugs[Any], str]]:
    """Every plug that a configuration names, with its kind; formats are told by files, and bound to these."""
    metrics = [*config.scores.metrics, *(name for tier in config.scores.then for name in tier.metrics)]
    yield from ((METRICS, name) for name in metrics)
    yield SOLVERS, config.samples.solver
    yield FAMILIES, family_of(config.model)
    yield from ((EMBEDDERS, name.partition(":")[0]) for name in config.matches.profiles)
    yield from ((MITIGATIONS, name) for name in config.mitigation.methods)
    if config.mitigation.methods and config.mitigation.alignment is not None:
        yield EMBEDDERS, config.mitigation.alignment.partition(":")[0]
    yield from ((STAGES, name) for name in config.stages)


def identities(config: AuditConfig, inputs: Inputs, earlier: Mapping[str, Any] | None = None) -> dict[str, Identity]:
    """The identity of every stage, in the order of the flow.

    earlier: of a run that is there, its `RunFolder.earlier`: an older run is held against what it was made with.
    """
    found = {ingest.NAME: ingest.identity(inputs)}
    for stage in flow(config).values():
        prints = {name: made.fingerprint for name, made in found.items()}
        found[stage.name] = identity(stage, config, inputs, prints, earlier or {})
    return found
