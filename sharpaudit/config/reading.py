"""TOML in, frozen models out. A byte order mark before it is no part of it.

Unknown keys are refused with the nearest known one. Paths are relative to the file that names them; `lab:NAME` is a
file of the testbed that ships with the package.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sharpaudit.config.audit import AuditConfig
from sharpaudit.config.earlier import RENAMED
from sharpaudit.encoding import decoded
from sharpaudit.errors import UserError, nearest, printable

MAX_CONFIG_BYTES = 1_000_000
LAB = Path(__file__).parents[1] / "lab" / "data"


def fields(model: type[BaseModel] = AuditConfig, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Every leaf field by its dotted name, with its class ("identity", "given", "runtime")."""
    found: dict[str, dict[str, Any]] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found |= fields(info.annotation, f"{prefix}{name}.")
        else:
            extra = info.json_schema_extra
            found[prefix + name] = dict(extra) if isinstance(extra, dict) else {}
    return found


def value(config: AuditConfig, dotted: str) -> Any:
    """The value of the field of that dotted name."""
    found: Any = config
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


def load(path: Path, overrides: Sequence[str] = ()) -> AuditConfig:
    """The configuration of a TOML file, with `key=value` overrides such as `triage.alpha=0.02`.

    Input paths come back absolute. Raises UserError, one line, for every mistake.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read the config: {error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise UserError(f"{path}: a config may have {MAX_CONFIG_BYTES} bytes, this one has {len(raw)}")
    try:
        tree = tomllib.loads(decoded(raw, str(path)))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {printable(str(error))}") from error
    for override in overrides:
        _set(tree, override)
    return resolve_paths(parse(tree, str(path)), path.resolve().parent)


def override(config: AuditConfig, overrides: Sequence[str]) -> AuditConfig:
    """`config` with `key=value` overrides; paths among them as they are. Raises UserError as `load` does."""
    tree = config.model_dump(mode="json")
    for entry in overrides:
        _set(tree, entry)
    return parse(tree, "--set")


def parse(tree: dict[str, Any], source: str) -> AuditConfig:
    """The configuration of a parsed TOML tree; `source` names it in errors."""
    if "calibration" not in tree:
        raise UserError(
            f'{source}: no calibration prompts: add [calibration] with file = "..." (harmless prompts of the '
            "corpus's style, split by family), or both fit and calibrate; without them no error rate can be claimed"
        )
    try:
        return AuditConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from error


def resolve_paths(config: AuditConfig, base: Path) -> AuditConfig:
    """`config` with every input path absolute: relative ones start at `base`, `lab:` ones in the package."""

    def place(path: Any) -> Any:
        if path is None:
            return None
        if isinstance(path, list):
            return [place(entry) for entry in path]
        return str(LAB / path[4:] if path.startswith("lab:") else (base / Path(path).expanduser()))

    tree = config.model_dump(mode="json")
    for section, names in PATHS.items():
        for name in names:
            tree[section][name] = place(tree[section][name])
    return AuditConfig.model_validate(tree)


PATHS = {
    "model": ("path",),
    "corpus": ("audit", "positive_controls"),
    "calibration": ("file", "fit", "calibrate"),
    "matches": ("index", "weights"),
}


def _set(tree: dict[str, Any], override: str) -> None:
    dotted, sign, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not sign or not all(keys):
        raise UserError(f"--set {printable(override)}: write key=value, for instance --set triage.alpha=0.02")
    try:
        new = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        new = text.strip() or text  # A tab may be what is meant.
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {printable(override)}: {key} is a value, not a section")
    tree[keys[-1]] = new


def _explain(error: ValidationError) -> str:
    """The first mistake of a validation error as one line."""
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"])
    # A list that is too short for want of its mistaken entry is the same mistake.
    n_others = sum(first["loc"][: len(other["loc"])] != other["loc"] for other in others)
    more = f" (and {n_others} more)" if n_others else ""
    if first["type"] == "extra_forbidden":
        section, _, key = where.rpartition(".")
        if where in RENAMED:
            return f'unknown key "{where}": it is {RENAMED[where]} now; name that one{more}'
        siblings = _keys_of(section)
        hint = nearest(key, siblings) or f" (known here: {', '.join(sorted(siblings))})"
        return f'unknown key "{printable(where)}"{hint}{more}'
    message = first["msg"].removeprefix("Value error, ")
    shown = (
        ""
        if first["type"] == "missing" or isinstance(first["input"], dict)
        else f" = {printable(json.dumps(first['input'], default=str))}"
    )
    allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
    return f"{printable(where)}{shown}: {message}{nearest(str(first['input']), allowed)}{more}"


def _keys_of(section: str) -> list[str]:
    model: Any = AuditConfig
    for part in section.split(".") if section else []:
        # A number is the entry of a list of sections.
        model = get_args(model)[0] if part.isdigit() else model.model_fields[part].annotation
    return list(model.model_fields)
