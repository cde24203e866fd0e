"""The console script `sharpaudit`, and `python -m sharpaudit`: the command line in pipelines/cli.py."""

from __future__ import annotations

import sys

from sharpaudit.errors import UserError
from sharpaudit.origin import require_ours


def main() -> None:
    """Run the command line of the `pipelines` that was installed with this package."""
    try:
        require_ours()
    except UserError as error:
        sys.stderr.write(f"sharpaudit: {error}\n")
        sys.exit(2)
    from pipelines.cli import main as run

    run()


if __name__ == "__main__":
    main()
