"""A user's shell: what a process finds there that a test starts, and nothing of what the tests have set for themselves.

The cores that a test process may use are inherited, and so are the threads that follow from them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

_HOME = TemporaryDirectory(prefix="home-")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])


def bare(more: Mapping[str, str] | None = None, home: Path | None = None) -> dict[str, str]:
    """The variables of a process: a home folder, empty but for what was put into `home`, a PATH, and `more`.

    Two stay where they are set: PYTHONPATH, by which tests find code that is not installed (chaos/test_mutations.py),
    and OPENBLAS_CORETYPE, without which the last bit of a sum would not be that of the process that compares.
    """
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "OPENBLAS_CORETYPE") if name in os.environ}
    return {"HOME": str(home or _HOME.name), "PATH": PATH} | kept | dict(more or {})


def left_at_home() -> list[str]:
    """What processes of a bare shell have written into their home folder."""
    return sorted(str(path.relative_to(_HOME.name)) for path in Path(_HOME.name).rglob("*"))
