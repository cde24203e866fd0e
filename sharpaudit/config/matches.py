"""[matches]: what pictures are held against, and what is a copy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints

from sharpaudit.config.base import Section, identity, runtime
from sharpaudit.errors import UserError
from sharpaudit.plugs import EMBEDDERS


def _known(name: str) -> str:
    kind, _, which = name.partition(":")
    try:
        return EMBEDDERS[kind].form(which).name
    except UserError as error:
        raise ValueError(str(error)) from error


EmbedderName = Annotated[str, AfterValidator(_known)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]


class MatchesConfig(Section):
    """Comparison of samples with the training pictures."""

    index: str = runtime()
    """Folder of the reference index. Its content counts (its digest is an identity), not its place."""
    profile: EmbedderName = identity(default="pixels-16")
    """Embedder that describes pictures; the index must have been built with the same one."""
    weights: str | None = runtime(None)
    """Folder with the weights of an embedder that has some, under the names that their makers give. Their content
    counts (the digest of the index covers it), not their place."""
    weights_sha256: list[Sha256] = runtime([])
    """Digests of weights that you vouch for, beside those that the embedder's own list has."""
    batch_size: int = runtime(64, ge=1, le=4096)
    """Pictures that it takes at a time; one without a network takes them one by one."""
    search: Literal["exact", "fp16", "sq8", "ivf-sq8", "ivf-pq"] = runtime("exact")
    """Exact, or by an approximate structure that `sharpaudit index approximate` built into the index. What such a one
    finds counts: its digest is an identity, and the report says how much it misses."""
    vectors: Literal["auto", "memory", "disk"] = runtime("auto")
    """Where exact search has the vectors; "auto" takes memory if they fit. It changes nothing of the answer."""
    neighbours: int = identity(default=3, ge=1, le=100)
    """Training pictures recorded per sample."""
    near_quantile: float = identity(default=0.95, gt=0, lt=1)
    """Band `near` begins at this quantile of the band samples; band `copy` above all of them but the exceptions."""
    band_exceptions: int = identity(default=1, ge=0, le=100)
    """Band prompts, at most one in 50, that may lie above the copy line and are named in the report: a fit prompt may
    be memorised without anybody knowing, and would hide the copies of others."""
