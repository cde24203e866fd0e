"""`status`: how far a run is, from its committed tables alone."""

from __future__ import annotations

import json
from typing import Any

from sharpaudit.tables.lock import holder
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import ORIGINS


def describe(run: RunFolder) -> dict[str, Any]:
    """State, driver, and per table the committed rows by status."""

    tables = {}
    for table in run.tables():
        if table.name == ORIGINS.name:
            # Its rows say nothing of how far the work is: corpus stands for both.
            continue
        folder = run.table(table)
        commit = folder.table_commit()
        manifests = folder.manifests() if commit is None else folder.current()
        statuses: dict[str, int] = {}
        for manifest in manifests:
            for name, count in manifest.statuses.items():
                statuses[name] = statuses.get(name, 0) + count
        tables[table.name] = {
            "complete": commit is not None and not commit.quarantined,
            "shards": len(manifests),
            "statuses": statuses,
            "quarantined": commit.quarantined if commit else [],
        }
    driver = holder(run.root)
    working = driver is not None and (driver.process.alive() or not driver.process.on_this_host())
    finished = (run.root / "report" / "index.html").exists() and all(t["complete"] for t in tables.values())
    progress = run.root / "progress.json"
    return {
        "run": str(run.root),
        "state": "running" if working else "complete" if finished else "interrupted",
        "driver": f"process {driver.process.pid} on {driver.process.host}" if driver and working else None,
        "progress": json.loads(progress.read_bytes()) if working and progress.exists() else None,
        "tables": tables,
    }
