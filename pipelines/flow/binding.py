"""May this configuration work in this run folder? Changes are named, and nothing is mixed.

A run is bound to what it audits from its first commit on: other input files or columns are refused. Identity fields
may change with `update`; it is said beforehand which stages stay and which are redone, with rows and the time they
took. A run whose tables are not those that would be written now is read, and never gone on with.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.flow.identity import identities
from pipelines.stages import flow, ingest, tables
from pipelines.stages.base import Inputs, Stage
from sharpaudit import __version__
from sharpaudit import config as configuration
from sharpaudit.config import PATHS, AuditConfig
from sharpaudit.devices import describe_hardware
from sharpaudit.errors import UserError, printable
from sharpaudit.plugs import FORMATS, STAGES, foreign
from sharpaudit.tables.declared import described
from sharpaudit.tables.records import replace_file
from sharpaudit.tables.runs import RECORD, RUN_VERSION, SETTINGS, Change, Identity, RunFolder, changes

SOFTWARE = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "numpy",
    "pillow",
    "faiss-cpu",
    "faiss-gpu",
    "pyarrow",
    "duckdb",
    "ray",
)


def require_own(run: RunFolder, config: AuditConfig | None = None) -> None:
    """Refuse, with a UserError, to go on with a run of another version, or whose tables are not those of `config`.

    What was begun and has committed nothing begins anew, and a foreign stage may join. config: None where the run's own
    is to be read first, which only its own version can be sure to do.
    """
    record = run.record()
    if record is None or not run.has_begun():
        return
    fix = (
        f"it can be read and verified, but not gone on with here: name a new folder, or go on with the version that "
        f"made it (sharpaudit {printable(str(record.get('sharpaudit_version')))})"
    )
    if run.is_older():
        raise UserError(
            f"{run.root}: a run of version {record['run_version']}, this sharpaudit makes version {RUN_VERSION}; {fix}"
        )
    if config is None:
        return
    then, now = ({table.name: table for table in found} for found in (run.tables(), tables(flow(config))))
    free = {stage.table.name for name, stage in flow(config).items() if stage.asked_by or name not in STAGES.ours()}
    joining = free - then.keys()
    other = [name for name in dict.fromkeys([*then, *now]) if name not in joining and then.get(name) != now.get(name)]
    if other:
        what = "none" if other[0] not in now else "another" if other[0] in then else "one more"
        stage = (then | now)[other[0]].stage
        if (stage not in STAGES.ours() or STAGES[stage].asked_by) and what != "one more":
            left = (
                "is left out of the configuration; put it back, or"
                if what == "none"
                else "has a table of another version here;"
            )
            raise UserError(f"{run.root}: stage {stage} made part of this run and {left} name a new folder with --out")
        raise UserError(f"{run.root}: table {other[0]} of this run: this sharpaudit has {what} of that name; {fix}")


def with_extensions(run: RunFolder, config: AuditConfig) -> AuditConfig:
    """`config` with the audited files that `sharpaudit extend` added to the run: they stay part of it."""
    # The record first: of a run of another version it says so, whatever its settings were called.
    if run.record() is None or not run.has_begun() or not (run.root / SETTINGS).exists():
        return config
    return with_audited(config, _added(run.config().corpus.audit, config.corpus.audit))


def _added(held: Sequence[str], asked: Sequence[str]) -> list[str]:
    """What a run audits that its config does not name; a file of the same name in another place is one that moved."""
    unmet = [path for path in asked if path not in held]
    added = []
    for path in held:
        if path in asked:
            continue
        moved = next((other for other in unmet if Path(other).name == Path(path).name), None)
        if moved is not None:
            unmet.remove(moved)
        elif path != held[0]:
            added.append(path)
    return added


def with_audited(config: AuditConfig, paths: Sequence[str]) -> AuditConfig:
    """`config` with more audited files. Raises UserError for one that it names already."""
    if not paths:
        return config
    return configuration.override(config, [f"corpus.audit={json.dumps([*config.corpus.audit, *paths])}"])


@contextmanager
def bound(run: RunFolder, config: AuditConfig, inputs: Inputs, **options: Any) -> Iterator[None]:
    """`bind` with these options for a block that reads the prompts.

    Where the block refuses them with a UserError, a run that had begun is again what it was: files that cannot be read
    do not become part of it.
    """
    before = {path: path.read_bytes() for name in (RECORD, SETTINGS) if (path := run.root / name).exists()}
    begun = run.has_begun()
    bind(run, config, inputs, **options)
    try:
        yield
    except UserError:
        for path, data in before.items() if begun else ():
            replace_file(path, data, run.files)
        raise


def bind(
    run: RunFolder,
    config: AuditConfig,
    inputs: Inputs,
    *,
    update: bool,
    extend: bool = False,
    say: Callable[[str], None],
) -> None:
    """Write run.json and config.toml, or raise UserError naming the fields that speak against it.

    extend: audited files may be new.
    """
    made, read_by = identities(config, inputs), foreign((FORMATS, name) for name in ingest.formats(config))
    # A call that was refused while it read the prompts has committed nothing: put right, it begins anew.
    before = run.record() if run.has_begun() else None
    record = {
        "name": config.name,
        "sharpaudit_version": __version__,
        "created": before["created"] if before else datetime.now(UTC).isoformat(timespec="seconds"),
        "facts": asdict(inputs) | {"plugs": [*inputs.plugs, *read_by]},
        "given": given(config),
        "inputs": ingest.inspect(config, before),
        "hardware": describe_hardware(),
        "software": software(),
        "stages": {name: asdict(entry) | {"fingerprint": entry.fingerprint} for name, entry in made.items()},
        "tables": [described(table) for table in tables(flow(config))],
    } | _noise_floor(before, made)
    if before is not None:
        _refuse_other_inputs(run, before, record, extend=extend)
        found = changes(before, made)
        if found:
            lines = _plan(run, flow(config), found)
            for line in lines:
                say(line)
            if not update:
                raise UserError(
                    f"{run.root}: this run was made with {_named(found)}; "
                    "add --update to redo what that changes, or name a new folder with --out"
                )
    run.write_record(record)
    run.write_config(config)


def software() -> dict[str, str]:
    """Versions of Python and of the libraries that compute, decode, search and store."""
    found = {"python": platform.python_version()}
    for name in SOFTWARE:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _noise_floor(before: Mapping[str, Any] | None, made: Mapping[str, Identity]) -> dict[str, Any]:
    """What an earlier call measured, where it measured the same; None until then. A run without the entry has none."""
    if before is None:
        return {"noise_floor": None}
    if "noise_floor" not in before:
        return {}
    same = before["stages"]["fit_unconditional"]["fingerprint"] == made["fit_unconditional"].fingerprint
    return {"noise_floor": before["noise_floor"] if same else None}


def given(config: AuditConfig) -> dict[str, Any]:
    """The fields that say what is audited, but for paths: a file may move, its content may not change."""
    paths = {f"{section}.{name}" for section, names in PATHS.items() for name in names}
    fields = configuration.fields().items()
    names = [name for name, info in fields if info.get("class") == "given" and name not in paths]
    values = {name: configuration.value(config, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _refuse_other_inputs(run: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any], *, extend: bool) -> None:
    for name, value in now["given"].items():
        if before["given"].get(name) != value:
            raise UserError(
                f"{run.root}: {name} was {before['given'].get(name)!r} and is now {value!r}; "
                "a run is bound to what it audits: name a new folder with --out"
            )
    then, today = ({entry["source"]: _content(entry) for entry in tree["inputs"]} for tree in (before, now))
    for source in sorted(then | today):
        if source not in then and source.startswith("audit:") and extend:
            continue
        if then.get(source) != today.get(source):
            what = _difference(then.get(source), today.get(source))
            raise UserError(
                f"{run.root}: input {printable(source)} {what} since the run began; "
                "a run is bound to what it audits: name a new folder with --out, or add prompts by `sharpaudit extend`"
            )


def _difference(then: tuple[str, Any] | None, today: tuple[str, Any] | None) -> str:
    if then is None or today is None:
        return "is not part of this run" if then is None else "is missing now"
    return "has changed" if then[0] != today[0] else "is read by another version of its format"


def _content(entry: Mapping[str, Any]) -> tuple[str, Any]:
    """What of an input must stay: its bytes, and the foreign format that reads them."""
    return entry["sha256"], entry.get("format")


def _plan(run: RunFolder, stages: Mapping[str, Stage], found: list[Change]) -> list[str]:
    """One line a stage: what stays and what is redone, with rows and the time they took."""
    redone, there = {change.stage for change in found}, {table.name for table in run.tables()}
    lines = []
    for stage in stages.values():
        if stage.table.name not in there:
            lines.append(f"{stage.name}: joins")
            continue
        manifests = run.table(stage.table).manifests()
        rows, seconds = sum(m.rows for m in manifests), sum(m.duration_s for m in manifests)
        work = f"{rows:,} rows, {seconds:,.0f} s of work"
        lines.append(f"{stage.name}: {'redone' if stage.name in redone else 'stays'} ({work})")
    if "triage" in redone and "sample" not in redone:
        lines.append("sample and what comes after: prompts that are newly selected are generated and matched")
    return lines


def _named(found: list[Change]) -> str:
    """The fields that differ, once each, as 'triage.alpha = 0.01 (now 0.02)'."""
    fields = {name: pair for change in found for name, pair in change.fields.items()}
    return ", ".join(f"{name} = {then} (now {now})" for name, (then, now) in fields.items())
