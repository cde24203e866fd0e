"""What sections of the configuration are made of: frozen models, a file each beside this one.

Every field is of one class, and a test keeps it so:

- `identity`: it changes results; it enters the fingerprints of the stages that read it, and those are redone when it
  changes;
- `given`: what is audited. A run is bound to it; another corpus is another run;
- `runtime`: how the work is done; free to change at any time.
"""

from __future__ import annotations

from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sharpaudit.errors import UserError
from sharpaudit.plugs import Plugs


def identity(*, default: Any = ..., **limits: Any) -> Any:
    """A field that changes the rows of the stages that say they read it."""
    return Field(default, json_schema_extra={"class": "identity"}, **limits)


def given(default: Any = ..., **limits: Any) -> Any:
    """A field that says what is audited; a run is bound to it."""
    return Field(default, json_schema_extra={"class": "given"}, **limits)


def runtime(default: Any = ..., **limits: Any) -> Any:
    """A field that changes no result."""
    return Field(default, json_schema_extra={"class": "runtime"}, **limits)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def known(plugs: Plugs[Any]) -> AfterValidator:
    def name_of(name: str) -> str:
        try:
            return str(plugs[name].name)
        except UserError as error:
            raise ValueError(str(error)) from error

    return AfterValidator(name_of)
