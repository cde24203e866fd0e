"""One exact search of the bench in a process that does nothing else: python -m, with what is asked as JSON.

It prints the seconds, the vectors and the queries, and the GiB that it held at its peak.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.bench.sql_facts import peak_kib
from sharpaudit.matches.search.engines import ByFaiss
from sharpaudit.matches.search.flat import search
from sharpaudit.matches.search.vectors import Vectors


def main(asked: dict[str, Any]) -> None:
    """asked: the files of vectors, that of the queries, and the threads."""
    queries_MD = np.load(asked["queries"])
    vectors = Vectors([Path(file) for file in asked["files"]], queries_MD.shape[1])
    begun = time.monotonic()
    search(vectors, queries_MD, 1, ByFaiss(asked["threads"]))
    found = {"seconds": time.monotonic() - begun, "rows": len(vectors), "queries": len(queries_MD)}
    sys.stdout.write(json.dumps(found | {"gib": peak_kib() / 2**20}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    # All is measured and told. Libraries' threads that still run could abort an orderly end of the interpreter.
    os._exit(0)
