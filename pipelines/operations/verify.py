"""Whether a run is what it says: every check, every fault by name; no model and no index is needed.

The report is made again from the tables, with what the tables do not hold taken from the report itself and held
against run.json and config.toml. Of a run of another version (older.py) all is checked but that, and a note says so.
Findings are evaluated again only when asked for: that needs the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key

from pipelines.flow.binding import given
from pipelines.flow.identity import identities
from pipelines.operations import older
from pipelines.operations.replay import replay_prompt
from pipelines.stages import flow
from pipelines.stages.base import Inputs
from pipelines.stages.report import made_of, sections_of
from sharpaudit.errors import IntegrityError, UserError
from sharpaudit.evidence.checks import (
    attestation_faults,
    identity_faults,
    picture_faults,
    revision_faults,
    seal_faults,
    table_faults,
)
from sharpaudit.report.facts import agree, collect
from sharpaudit.report.html import findings_csv, render
from sharpaudit.seeds import rank_hash
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.records import read_checksummed
from sharpaudit.tables.runs import RunFolder, changes, without_null

BOUND = ("seed", "scores", "triage", "samples", "matches", "report")
"""Sections of the configuration that the report repeats."""


@dataclass(frozen=True)
class Verdict:
    """faults: what is wrong, each once. notes: what could not be checked, and why."""

    faults: list[str]
    notes: list[str]


def faults(root: Path, key: Key | None = None) -> list[str]:
    """Every fault of the run; none for one that is whole and unchanged, and signed by `key` if given."""
    return examine(root, key).faults


def examine(root: Path, key: Key | None = None) -> Verdict:
    """The faults of the run, and what of them could not be looked for since another version made it.

    Raises UserError for a run of a version that is not read.
    """
    run = RunFolder.open(root)
    with suppress(IntegrityError):
        # A damaged record is named below, by every check that needs it.
        run.record()
    notes, hindered = _carried_out(root, "the check of its version", lambda: older.notes(run))
    found = [*seal_faults(root), *hindered]
    checks: dict[str, Callable[[], Iterable[str]]] = {
        "the check of revisions": lambda: revision_faults(root),
        "the check of the attestation": lambda: attestation_faults(root, key),
        "the check of identities": lambda: identity_faults(run),
        "the check of settings": lambda: settings_faults(run),
        "the check of tables": lambda: table_faults(run),
        "the check of pictures": lambda: picture_faults(run),
        "the check of the report": lambda: report_faults(run),
    }
    for name, check in checks.items():
        said, hindered = _carried_out(root, name, check)
        found += [*said, *hindered]
    return Verdict(list(dict.fromkeys(found)), notes)


def _carried_out(root: Path, name: str, check: Callable[[], Iterable[str]]) -> tuple[list[str], list[str]]:
    """What a check says, and the fault, if any, that kept it from saying all."""
    said: list[str] = []
    try:
        said.extend(check())
    except (IntegrityError, UserError) as error:
        return said, [str(error)]
    except Exception as error:  # noqa: BLE001 - whatever damaged input does to a check, the others must be heard
        return said, [f"{root}: {name} could not be carried out: {error!r}"]
    return said, []


def settings_faults(run: RunFolder) -> Iterator[str]:
    """Settings that are not those which the stages of run.json, or what is audited, were made with."""
    if older.maker(run) is not None:
        yield from older.settings_faults(run)
        return
    record, config = run.record() or {}, run.config()
    if given(config) != record.get("given"):
        yield f"{run.root / 'config.toml'}: what is audited is not what run.json says"
    for change in changes(record, identities(config, Inputs(**record["facts"]), run.earlier())):
        names = ", ".join(change.fields) or "its inputs"
        yield f"{run.root / 'config.toml'}: {names}: not what {change.stage} was made with"


def report_faults(run: RunFolder) -> Iterator[str]:
    """Parts of the report that do not follow from the tables, run.json and config.toml."""
    path = run.root / "report" / "facts.json"
    try:
        written: dict[str, Any] = json.loads(path.read_bytes())
        told = written["run"]
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{path}: not the facts of a report"
        return
    stamp = run.root / "report" / "made_of.json"
    if not stamp.exists() or read_checksummed(stamp) != {"digest": made_of(run, told)}:
        yield f"{stamp}: the report was made of other tables than those that are there"
    if json.loads((run.root / "inputs.json").read_bytes()) != told["inputs"]:
        yield f"{run.root / 'inputs.json'}: not the inputs of the report"
    yield from (f"{path}: run.{name} is not that of {source}" for name, source in _told_faults(run, told))
    if older.maker(run) is not None:
        yield from older.report_faults(run, written)
        return
    sections = sections_of(flow(run.config()))
    with open_connection(run) as connection:
        made = json.loads(json.dumps(collect(connection, told, sections, run.tables()), allow_nan=False))
    names = sorted(written.keys() | made.keys())
    differing = [name for name in names if not agree(written.get(name), made.get(name))]
    if differing:
        yield f"{path}: {', '.join(differing)}: not what the tables give"
    # Of facts that agree, to the last bit those that stand there.
    made |= {name: written[name] for name in written if name not in differing}
    page = render(made, lambda image: (run.root / image).read_bytes(), sections)
    for name, text in (("report/index.html", page), ("findings.csv", findings_csv(made))):
        file = run.root / name
        if not file.is_file() or file.read_bytes() != text.encode():
            yield f"{file}: not what the tables give"


def _told_faults(run: RunFolder, told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    record, settings = run.record() or {}, run.settings()
    facts = record.get("facts", {})
    for name in ("digest", "dtype", "device"):
        if told["model"][name] != facts.get("model_digest" if name == "digest" else name):
            yield f"model.{name}", "run.json"
    if told["index"]["digest"] != facts.get("index_digest"):
        yield "index.digest", "run.json"
    holds = facts.get("index_holds")
    for name in ("holds", "weights"):
        if told["index"].get(name) != facts.get(f"index_{name}"):
            yield f"index.{name}", "run.json"
    if holds and told["index"]["pictures"] != holds["references"]:
        yield "index.pictures", "run.json"
    for name in ("created", "sharpaudit_version", "hardware"):
        if told[name] != record.get(name):
            yield name, "run.json"
    if [{k: v for k, v in entry.items() if k != "rows"} for entry in told["inputs"]] != record.get("inputs"):
        yield "inputs", "run.json"
    for name in sorted({*BOUND, *told["settings"]}):
        if without_null(told["settings"].get(name)) != settings.get(name):
            yield f"settings.{name}", "config.toml"


def replays(root: Path, n: int) -> Iterator[tuple[str, bool]]:
    """n findings of a random order made again: prompt id, and whether the same training pictures are reached."""
    run = RunFolder.open(root)
    with open_connection(run) as connection:
        ids = [row[0] for row in connection.sql("SELECT prompt_id FROM findings").fetchall()]
    for prompt_id in sorted(ids, key=lambda name: rank_hash(0, "verify", name))[:n]:
        yield prompt_id, replay_prompt(root, prompt_id).same
