"""`sharpaudit status`: how far a run is, from its committed tables alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import run_argument


@click.command()
@run_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def status(run_folder: Path, as_json: bool) -> None:
    """Show what of RUN is committed, who works on it, and what was set aside.

    \b
    Example: sharpaudit status runs/quickstart
    """
    from sharpaudit.tables.runs import RunFolder

    found = describe(RunFolder.open(run_folder.absolute()))
    click.echo(json.dumps(found, indent=1) if as_json else _text(found))


def describe(run: Any) -> dict[str, Any]:
    """State, driver, and per table the committed rows by status."""
    from sharpaudit.tables.lock import holder
    from sharpaudit.tables.schemas import ORIGINS

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


def _text(found: dict[str, Any]) -> str:
    lines = [f"{found['run']}: {found['state']}" + (f" ({found['driver']})" if found["driver"] else "")]
    for name, table in found["tables"].items():
        nothing = "none needed" if table["complete"] else "nothing yet"
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(table["statuses"].items())) or nothing
        note = f"; set aside: {', '.join(table['quarantined'])}" if table["quarantined"] else ""
        lines.append(
            f"  {name:<18}{'' if table['complete'] else '(open) '}{counts} in {table['shards']:,} shards{note}"
        )
    if found["progress"]:
        now = found["progress"]
        rate = f"{now['rows_per_s']}/s, ETA {now['eta_s']} s"
        lines.append(f"  now: {now['stage']} {now['rows_done']:,}/{now['rows_total']:,}, {rate}")
    return "\n".join(lines)
