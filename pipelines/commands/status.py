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
    from pipelines.operations.status import describe
    from sharpaudit.tables.runs import RunFolder

    found = describe(RunFolder.open(run_folder.absolute()))
    click.echo(json.dumps(found, indent=1) if as_json else _text(found))


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
