"""The report's facts of a run of the SQL bench, built in a process that holds nothing else: python -m, with its folder.

It prints the seconds that this took and the GiB that the process held at its peak.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from sharpaudit.report.facts import collect
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RunFolder

SETTINGS = {
    "settings": {"triage": {"flag_by": "p", "alpha": 0.01, "q": 0.1, "procedure": "benjamini-hochberg"}},
    "quarantined": [],
}


def main(root: Path) -> None:
    """Raises ValueError where the tables contradict themselves."""
    begun = time.monotonic()
    with open_connection(RunFolder.open(root), lean=True) as connection:
        facts = collect(connection, SETTINGS)
    if not facts["reconciles"]:
        raise ValueError("; ".join(facts["differences"]))
    # ru_maxrss is in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(json.dumps({"seconds": time.monotonic() - begun, "gib": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
