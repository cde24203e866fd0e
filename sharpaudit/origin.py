"""Our two packages are taken from the files that were installed together, whatever stands first on the path.

`pipelines` is a name that others use as well: on PYTHONPATH, or in the working folder, which Ray puts before all others
on the path of its workers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from sharpaudit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds both packages."""


def imports_from(root: str) -> Callable[[], None]:
    """What imports both packages from `root`, where that folder is on the machine; else they come from the path.

    Nested, so that Ray sends it to another process as code and not as the name of a module to be found first.
    """

    def import_both() -> None:
        import importlib.util
        import sys
        from pathlib import Path

        for name in ("sharpaudit", "pipelines"):
            folder = Path(root) / name
            spec = importlib.util.spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            if name in sys.modules or not folder.is_dir() or spec is None or spec.loader is None:
                continue
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)

    return import_both


def module_call(module: str) -> list[str]:
    """How a process of its own runs a module of `pipelines`; arguments may follow."""
    program = "import runpy; from sharpaudit.origin import require_ours; require_ours(); "
    # -P: no module is taken from the working folder.
    return [sys.executable, "-P", "-c", f"{program}runpy.run_module({module!r}, run_name='__main__')"]


def require_ours() -> None:
    """Import `pipelines` from beside this package. Raises UserError where another package of that name was first."""
    imports_from(str(ROOT))()
    try:
        import pipelines
    except ModuleNotFoundError as error:
        raise UserError(f"{ROOT}: the package pipelines is missing there; install sharpaudit again") from error
    found = Path(pipelines.__file__ or "nowhere").resolve().parent
    if found != ROOT / "pipelines":
        raise UserError(
            f"{found}: another package of the name pipelines was imported before that of sharpaudit in {ROOT}; "
            "take its folder off PYTHONPATH"
        )
