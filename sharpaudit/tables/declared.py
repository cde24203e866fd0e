"""Tables as run.json records them: what a run holds is read from its own record, whatever this program declares.

    {"name": "scores", "stage": "score", "key": ["prompt_id", "tier", "metric"], "version": 1,
     "columns": [{"name": "prompt_id", "type": "string", "nullable": false}, ...]}

A type is the name of an Arrow type, list<TYPE> or map<TYPE, TYPE>. Runs of version 4 record no tables; what they have
stands in version_4.json, which never changes. A record comes from outside: names that could be another path, another
statement or another's, and types that are none, are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import pyarrow as pa

from sharpaudit.tables.image_store import IMAGES
from sharpaudit.tables.schemas import OPTIONAL_TABLES, RUN_TABLES, Table, schema_of
from sharpaudit.tables.views import CURRENT, INTERNAL, TAKEN, view_of

TABLE = re.compile(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)?")
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OUTCOME = ("status", "reason")
FOLDERS = (IMAGES, "report", "logs", "seals", "workers")
"""Of a run, beside those of its tables."""
NESTING = 8
"""How deep lists and maps of a type may stand in each other."""
_LIST = re.compile(r"list<(.+)>")
_MAP = re.compile(r"map<([^<>,]+), (.+)>")


def described(table: Table) -> dict[str, Any]:
    """The entry of a table. Raises ValueError for a name or a type that a record cannot hold."""
    columns = [{"name": f.name, "type": _name_of(f.type), "nullable": f.nullable} for f in table.schema]
    entry = {"name": table.name, "stage": table.stage, "key": list(table.key), "version": table.version}
    entry["columns"] = columns
    if rebuilt(entry) != table:
        raise ValueError(f"table {table.name!r}: has columns that the record of a run cannot hold")
    return entry


def rebuilt(entry: Mapping[str, Any]) -> Table:
    """The table of an entry. Raises ValueError for one that `described` does not make."""
    try:
        name, stage, version = str(entry["name"]), str(entry["stage"]), int(entry["version"])
        fields = [pa.field(str(c["name"]), _type_of(c["type"]), nullable=bool(c["nullable"])) for c in entry["columns"]]
        table = Table(name, stage, tuple(map(str, entry["key"])), version, schema_of(name, version, fields))
    except (KeyError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise ValueError(f"not the entry of a table: {error!r}") from error
    names = table.schema.names
    plain = TABLE.fullmatch(name) and TABLE.fullmatch(stage) and all(map(COLUMN.fullmatch, names))
    refused = refusal(name, ())
    if refused is not None:
        raise ValueError(f"table {name!r}: {refused}")
    if name in CURRENT and stage not in {own.stage for own in (*RUN_TABLES, *OPTIONAL_TABLES) if own.name == name}:
        raise ValueError(f"table {name!r}: is not that of the stage {stage!r}")
    if not plain or len(set(map(str.lower, names))) < len(names) or not {*table.key, *OUTCOME} <= set(names):
        raise ValueError(f"table {name!r}: its names are not those that a table can have")
    return table


def refusal(name: str, others: Iterable[str]) -> str | None:
    """Why a table cannot have this name beside tables of those others, as "is ..."; None where it can.

    In SQL it stands beside views and macros, in the folder of a run beside what is no table.
    """
    called, top = view_of(name), name.partition("/")[0]
    if not TABLE.fullmatch(name):
        return "is no name of a table: small letters, digits and _, at most one / between"
    if called in TAKEN:
        return f"is {called} in SQL, the name of a view or macro"
    if called.startswith(INTERNAL):
        return f"is {called} in SQL, where names that begin with {' or '.join(INTERNAL)} are internal"
    if top in FOLDERS:
        return f"is in the folder {top} of a run, which holds no table"
    for other in others:
        if view_of(other) == called:
            return f"is {called} in SQL, as the table {other} is"
        if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
            return f"is in one folder with the table {other}"
    return None


def all_rebuilt(entries: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """The tables of a record, in its order. Raises ValueError also where two cannot stand side by side."""
    found = tuple(_rebuilt(json.dumps(entry)) for entry in entries)
    names = [table.name for table in found]
    for i, name in enumerate(names):
        refused = refusal(name, names[:i])
        if refused is not None:
            raise ValueError(f"table {name!r}: {refused}")
    return found


@lru_cache(256)
def _rebuilt(entry: str) -> Table:
    """`rebuilt`, once for all the shards of a run."""
    return rebuilt(json.loads(entry))


@cache
def of_version_4() -> tuple[Mapping[str, Any], ...]:
    """The entries of a run of version 4."""
    return tuple(json.loads((files(__package__) / "version_4.json").read_text(encoding="utf-8")))


def _name_of(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list<{_name_of(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{_name_of(kind.key_type)}, {_name_of(kind.item_type)}>"
    return str(kind)


def _type_of(name: str, depth: int = NESTING) -> pa.DataType:
    if depth < 0:
        raise ValueError(f"lists and maps stand in each other more than {NESTING} deep")
    if match := _LIST.fullmatch(name):
        return pa.list_(_type_of(match[1], depth - 1))
    if match := _MAP.fullmatch(name):
        return pa.map_(_type_of(match[1], depth - 1), _type_of(match[2], depth - 1))
    return pa.type_for_alias(name)
