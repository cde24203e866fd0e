"""[mitigation]: what is tried against findings."""

from __future__ import annotations

from typing import Annotated

from pydantic import field_validator

from sharpaudit.config.base import Section, identity, known
from sharpaudit.config.matches import EmbedderName
from sharpaudit.plugs import MITIGATIONS

MethodName = Annotated[str, known(MITIGATIONS)]


class MitigationConfig(Section):
    """Methods that suppress copies, each tried on every finding. None, and the stage is no part of the audit."""

    methods: list[MethodName] = identity(default=[], max_length=32)
    """By their names; the control "none" is drawn whatever is named here."""
    pictures: int = identity(default=16, ge=4, le=64)
    """Of each finding and method, from the noise that its pictures without a method begin with. Suppressed means that
    none of them is a copy; of 16 that leaves a rate of up to 24% possible, the first of four strengths being told."""
    alignment: EmbedderName | None = identity(default=None)
    """Embedder of pictures and texts that says how well a picture shows what its prompt asks for, such as
    "open_clip:ViT-H-14"; its weights lie in the folder `matches.weights`. Without one nothing is said of that."""

    @field_validator("methods")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        if "none" in names:
            raise ValueError('"none" is drawn of every finding; name what is tried against them, or nothing')
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is named twice")
        return names
