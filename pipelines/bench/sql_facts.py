"""The report's facts of a run of the SQL bench, read from its database in a process that holds nothing else: python -m,
with the run's folder.

It prints the seconds that this took and the GiB that the process held at its peak.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from sharpaudit.report.facts import collect
from sharpaudit.tables.query import open_file

SETTINGS = {
    "settings": {
        "triage": {"flag_by": "p", "alpha": 0.01, "q": 0.1, "procedure": "benjamini-hochberg"},
        "samples": {"per_prompt": 4},
    },
    "quarantined": [],
    "index": {},
}


def main(root: Path) -> None:
    """Raises ValueError where the tables contradict themselves."""
    begun = time.monotonic()
    with open_file(root / "audit.duckdb", lean=True) as connection:
        facts = collect(connection, SETTINGS)
    if not facts["reconciles"]:
        raise ValueError("; ".join(facts["differences"]))
    sys.stdout.write(json.dumps({"seconds": time.monotonic() - begun, "gib": peak_kib() / 2**20}))


def peak_kib() -> int:
    """The most memory that this process held since it began its program.

    Not getrusage's ru_maxrss, which starts from what the calling process held.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
