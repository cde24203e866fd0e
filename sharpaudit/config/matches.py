"""[matches]: what pictures are held against, and what is a copy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints, field_validator

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

    @field_validator("profiles")
    @classmethod
    def _of_two_kinds(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError(f"{names[0]} cannot verify itself: name another embedder, or one alone")
        return names

    @property
    def profile(self) -> str:
        """Of the embedder that finds."""
        return self.profiles[0]

    @property
    def verified_by(self) -> str | None:
        """The embedder that verifies, where there is one."""
        return self.profiles[1] if len(self.profiles) > 1 else None

    index: str = runtime()
    """Folder of the reference index. Its content counts (its digest is an identity), not its place."""
    profiles: list[EmbedderName] = identity(default=["pixels-16"], min_length=1, max_length=2)
    """Embedder that describes pictures and finds the nearest; the index must have been built with the same one. A
    second, of another making, verifies what the first finds: a copy lies above the lines of both."""
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
