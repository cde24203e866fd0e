"""[model]: which model is audited, and where it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from sharpaudit.config.base import Section, identity, runtime


class ModelConfig(Section):
    """The audited model: a diffusers folder, a pinned hub revision, or an analytic `model.json`."""

    path: str | None = runtime(None)
    """Folder or file of the model. Its content counts (its digest is an identity), not its place."""
    repo: str | None = runtime(None)
    """Hub repository, together with `revision`; used where `path` is absent."""
    revision: str | None = runtime(None, pattern=r"^[0-9a-f]{40}$")
    """Commit of `repo`, 40 hex digits."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = identity(default="auto")
    """Precision of the network; differences and norms are always float32. "auto" is bfloat16 where the device has it
    and every metric allows it, else float32."""
    device: Literal["auto", "cpu", "cuda"] = identity(default="auto")
    batch_size: int = runtime(32, ge=1, le=4096)
    """Latents in one forward pass; halved by itself when the device's memory is short."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give exactly one of path and repo")
        if self.repo is not None and self.revision is None:
            raise ValueError(
                "repo needs a revision: the 40 hex digits of a commit, so that the audit names its weights"
            )
        return self
