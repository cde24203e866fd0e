"""A run that another version made, or other plugs, checked as far as this one can: without its stages, its settings or
its page.

Only the version that wrote a report can make it again. What is left is much: the fields of each recorded stage are held
against config.toml by their names, whatever they mean, and counts and findings of the report against the tables.
Whoever changes a run may claim that another version made it, so that its page is not made again: what was not checked
is said, and a signature covers all of it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.stages import flow, tables
from sharpaudit import __version__
from sharpaudit.errors import UserError, printable
from sharpaudit.plugs import require
from sharpaudit.report.facts import VERSION
from sharpaudit.report.reading import rows_of
from sharpaudit.report.sections.flow import counts
from sharpaudit.tables.answers import csv_text
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RUN_VERSION, SETTINGS, RunFolder, without_null

STEPS = {
    "source rows": "read",
    "accepted": "accepted",
    "distinct prompts": "distinct_prompts",
    "scored": "scored",
    "flagged": "flagged",
    "generated": "generated",
    "pictures matched": "matched",
    "with a copy in all": "copied",
}
"""Steps of a report's flow, and what they count."""


def maker(run: RunFolder) -> str | None:
    """What another version made this run, or with what other plugs, in words; None for one that this program can make
    again. Raises IntegrityError for a damaged record."""
    record = run.record() or {}
    facts = run.root / "report/facts.json"
    try:
        version = json.loads(facts.read_bytes())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        # The check of the report names it.
        version = VERSION
    told = (record.get("sharpaudit_version"), record.get("run_version"), version)
    others = "".join(f", and {what} that is not here as it was" for what in _other_plugs(run))
    own = told == (__version__, RUN_VERSION, VERSION) and not others
    if own and _has_other_tables(run):
        others = ", and stages or tables that are not this program's"
    if own and not others:
        return None
    return "sharpaudit {}, runs of version {}, facts of version {}".format(*map(printable, map(str, told))) + others


def _other_plugs(run: RunFolder) -> Iterator[str]:
    """The foreign plugs of the run, in words, that are missing here or of another version."""
    for plug in run.foreign_plugs():
        try:
            require([plug], same=True)
        except UserError:
            name, source, version = (printable(plug[key]) for key in ("name", "distribution", "version"))
            yield f'{printable(plug["kind"])} "{name}" of {source} {version}'.rstrip()


def _has_other_tables(run: RunFolder) -> bool:
    """Whether this program would give the run other tables than it has."""
    try:
        return run.tables() != tuple(tables(flow(run.config())))
    except (UserError, OSError, ValueError):
        # Of this version, with its plugs: settings that it refuses are a fault, which the check of settings names.
        return False


def notes(run: RunFolder) -> Iterator[str]:
    """What of a run of another version is not checked, one line; none for one that this program can make again."""
    made_by = maker(run)
    if made_by is None:
        return
    here = f"sharpaudit {__version__}, runs of version {RUN_VERSION}, facts of version {VERSION}"
    yield (
        f"{run.root / 'report/index.html'}: NOT made again from the tables, and so not checked: this run says that it "
        f"is of {made_by}; this is {here}. Its counts and findings were held against the tables. Only the version that "
        "made it, with the same plugs, can check the whole page"
    )


def settings_faults(run: RunFolder) -> Iterator[str]:
    """Settings in config.toml that are not those which run.json records."""
    record, settings, path = run.record() or {}, run.settings(), run.root / SETTINGS
    if any(_written(settings, name) != without_null(value) for name, value in record["given"].items()):
        yield f"{path}: what is audited is not what run.json says"
    for stage, entry in record["stages"].items():
        other = [name for name, value in entry["fields"].items() if _differs(record["facts"], settings, name, value)]
        if other:
            yield f"{path}: {', '.join(sorted(other))}: not what {stage} was made with"


def _differs(facts: Mapping[str, Any], settings: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether a field of an identity stands otherwise in the settings or facts; what only its stage knows does not."""
    outside, _, what = name.rpartition(" ")
    if what == "digest":
        return bool(facts.get(f"{outside}_digest", value) != value)
    written = _written(settings, name)
    if " " in name or ("." not in name and name not in settings) or (name.startswith("stages.") and written is None):
        # A foreign plug, what a stage makes of several settings, and an unwritten default of a foreign stage.
        return False
    section, _, key = name.rpartition(".")
    if written == "auto" and section == "model":
        written = facts.get(key)
    return bool(written != without_null(value))


def _written(settings: Mapping[str, Any], dotted: str) -> Any:
    """The value of that dotted name; None where none is written, as none is that is null."""
    found: Any = settings
    for part in dotted.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def report_faults(run: RunFolder, written: Mapping[str, Any]) -> Iterator[str]:
    """Counts and findings of the report, in words and as CSV, that are not those of the tables. written: its facts."""
    path, rows = run.root / "report/facts.json", written["findings"]["rows"]
    with open_connection(run) as connection:
        count = counts(connection)
        found = rows_of(connection, "SELECT * FROM findings ORDER BY prompt_id")
    told = {step["step"]: step["n"] for step in written["flow"]}
    other = [step for step, what in STEPS.items() if step in told and told[step] != count[what]]
    if other:
        yield f"{path}: flow: {', '.join(other)}: not what the tables give"
    shared = [{k: row[k] for k in row.keys() & own.keys()} for row, own in zip(found, _by_prompt(rows), strict=False)]
    same = [{k: own[k] for k in row} for row, own in zip(shared, _by_prompt(rows), strict=True)] == shared
    if not same or not len(found) == len(rows) == written["findings"]["total"]:
        yield f"{path}: findings: not what the tables give"
    table = run.root / "findings.csv"
    header = next(csv.reader(io.StringIO(table.read_text(encoding="utf-8"))), [])
    if table.read_bytes() != csv_text(header, [[row.get(name) for name in header] for row in rows]).encode():
        yield f"{table}: not the findings of the report"


def _by_prompt(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["prompt_id"]))
