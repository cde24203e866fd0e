"""Keys of earlier releases: a user's configuration that names one is refused with the name that took its place, and a
run that was made with one is read under today's.
"""

from __future__ import annotations

import copy
from typing import Any

RENAMED = {
    "samples.per_flagged": "samples.per_prompt",
    "samples.per_control": "samples.per_prompt",
    "samples.per_band": "samples.per_prompt",
    "matches.profile": "matches.profiles",
}
"""By dotted name. Of several that became one, the first gives the value."""

MADE_LISTS = ("matches.profile",)
"""Of these such as hold several values today."""

ADDED = {4: {"samples.solver": "ddim"}}
"""Keys that change results and came after runs of a version, with what such runs were made with: a default of today may
become another. By version, then by dotted name."""


def under_todays_names(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a run with today's keys, and those that stood there under earlier names, by dotted name."""
    found, earlier = copy.deepcopy(settings), {}
    for old, new in RENAMED.items():
        (section, key), (place, name) = old.split("."), new.split(".")
        if key in found.get(section, {}):
            earlier[old] = found[section].pop(key)
            told = earlier[old]
            found.setdefault(place, {}).setdefault(name, [told] if old in MADE_LISTS else told)
    return found, earlier


def with_defaults_of_then(settings: dict[str, Any], version: int) -> dict[str, Any]:
    """The settings of a run of that version, under today's names, with the keys that came later as they were then."""
    found = copy.deepcopy(settings)
    for last, added in ADDED.items():
        for dotted, default in added.items() if version <= last else ():
            section, _, key = dotted.partition(".")
            found.setdefault(section, {}).setdefault(key, default)
    return found
