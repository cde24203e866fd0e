"""The console script `sharpaudit`, and `python -m sharpaudit`: the command line in pipelines/cli.py."""

from __future__ import annotations

import os
import sys

from sharpaudit.errors import UserError
from sharpaudit.origin import require_ours


def main() -> None:
    """Run the command line of the `pipelines` that was installed with this package."""
    _speak_utf8()
    try:
        require_ours()
    except UserError as error:
        sys.stderr.write(f"sharpaudit: {error}\n")
        sys.exit(2)
    from pipelines.cli import main as run

    run()


def _speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale has another encoding.

    Names of files would come out of it in letters under which libraries, whose paths are UTF-8, find no file.
    """
    wanted = os.environ.get("PYTHONUTF8") == "1" or sys.flags.ignore_environment
    if sys.getfilesystemencoding() != "utf-8" and not wanted:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very command


if __name__ == "__main__":
    main()
