"""The locked installation: everything that sharpaudit needs, pinned and hashed."""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HASHES = r"(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
ENTRY = re.compile(rf"^(?P<name>[\w.-]+)==(?P<version>\S+) \\\n{HASHES}", re.M)


def locked() -> dict[str, str]:
    """Version by name. Fails where a line of the lock is neither a pin with hashes nor a comment."""
    text = (ROOT / "infra/requirements.lock").read_text()
    found = {canonicalize_name(entry["name"]): entry["version"] for entry in ENTRY.finditer(text)}
    rest = [line for line in ENTRY.sub("", text).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert rest == []
    return found


def asked() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["cpu"]]]


def test_every_dependency_is_locked_at_a_version_that_is_allowed() -> None:
    pins = locked()
    for requirement in asked():
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (requirement, version)


@pytest.mark.skipif(
    (sys.platform, platform.machine(), sys.version_info[:2]) != ("linux", "x86_64", (3, 11)),
    reason="the lock is one of Linux on x86-64 with Python 3.11",
)
def test_what_they_need_in_turn_is_locked_as_well() -> None:
    pins, open_, seen = locked(), [*asked()], set()
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        for extra in requirement.extras | {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            assert name in pins
            for line in metadata.requires(name) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    open_.append(needed)
    assert len(seen) > 60
