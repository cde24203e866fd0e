"""One pass over the flow of an audit, from ingest through every stage to the report and the seal.

`run_audit` resumes whatever is there: each stage is asked for its work, what is committed is left alone, the rest goes
to the executor, and the table is committed. A change of configuration is named before anything is redone, and needs
`update`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from securesystemslib.signer import Signer

from pipelines.flow.binding import bound, require_own, with_extensions
from pipelines.flow.deadline import Deadline
from pipelines.flow.identity import inputs_of
from pipelines.flow.mending import repair, retry_failed
from pipelines.flow.outcome import Outcome
from pipelines.flow.progress import Reporter
from pipelines.flow.signals import InterruptedRunError
from pipelines.stages import flow, ingest, shard_worker
from pipelines.stages.base import Receipt, Stage, Work, table_commit
from pipelines.stages.calibration import ONE_STYLE, allowed
from pipelines.stages.fit import role_of
from pipelines.stages.inputs import hashed
from pipelines.stages.report import write_report
from pipelines.workers import executor
from pipelines.workers.local import Run
from sharpaudit.config import AuditConfig
from sharpaudit.denoisers.load import beside_model, load_tokenizer
from sharpaudit.errors import IntegrityError
from sharpaudit.evidence.seal import EARLIER
from sharpaudit.evidence.sealing import resealed
from sharpaudit.plugs import STAGES
from sharpaudit.tables.files import IN_PROGRESS
from sharpaudit.tables.image_store import require_images, sweep_images
from sharpaudit.tables.lock import Guard, hold
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, TRIAGE, UNCONDITIONAL
from sharpaudit.tables.shards import TableFolder, probe_links


def run_audit(
    config: AuditConfig,
    root: Path,
    *,
    update: bool = False,
    extend: bool = False,
    retry: bool = False,
    repaired: bool = False,
    verify_index: bool = False,
    reporter: Reporter | None = None,
    until: str | None = None,
    signer: Signer | None = None,
) -> Outcome:
    """Run or resume the audit in `root`; with `until` up to that stage only, without a report. signer: of its seal.

    extend: whether the configuration may name audited files that the run does not have yet. retry: whether shards with
    failed rows are done again. repaired: whether damaged ones are. verify_index: whether files of the index are hashed
    that are by size, time and place those that the run began with.

    Raises UserError where another driver holds the run, or where the folder's run is of another configuration
    and `update` is false.
    """
    RunFolder.create(root)
    probe_links(root)
    reporter, deadline = reporter or Reporter(root), Deadline(config.run.deadline)
    with hold(root, reporter.say) as driver, reporter, ExitStack() as stack:
        guard = Guard(root, driver.id)
        run = RunFolder(root, guard=guard)
        # Left in the opposite order: workers end, then the run is sealed, then the lock is given back.
        stack.enter_context(resealed(root, whole=until is None, signer=signer, guard=guard))
        require_own(run, config)
        config = with_extensions(run, config)
        stages = flow(config)
        inputs = inputs_of(config, known=None if verify_index else hashed(run))
        with bound(run, config, inputs, update=update, extend=extend, say=reporter.say):
            for line in beside_model(config.model).not_applied:
                reporter.say(f"note: {line}")
            if repaired:
                repair(run, reporter.say)
            _sweep(run)
            if retry:
                retry_failed(run, stages.values(), reporter.say)
            added = ingest.ingest(run, config, load_tokenizer(config.model))
        _tell(run, config, added, reporter)
        # The executor starts with its first piece of work, so that a finished run starts none.
        start = cache(lambda: stack.enter_context(executor(root, config.run, driver, shard_worker)))
        wanted = list(stages.values())[: None if until is None else list(stages).index(until) + 1]
        results = []
        for stage in wanted:
            results.append(_run_stage(stage, stages.values(), run, config, start, reporter, deadline))
            _note(run, stage, reporter)
        quarantined = [entry for _, lost in results for entry in lost]
        evaluations = sum(made for made, _ in results)
        facts = write_report(run, config, quarantined) if until is None else {}
    return Outcome(evaluations, quarantined, facts, late=bool(deadline.left))


def _tell(run: RunFolder, config: AuditConfig, added: int, reporter: Reporter) -> None:
    """What is to be known of the prompts before the first stage. added: source rows that were read."""
    if config.run.executor == "local" and config.run.workers > 1:
        reporter.say(f"run.workers = {config.run.workers}: without Ray one process works alone; add --executor ray")
    if added:
        reporter.say(f"ingest: {added:,} source rows read")
    # Without styles of their own the audited prompts need not be read here: there may be ten million.
    audited = _styles(run, "audit") if config.corpus.style_column else ONE_STYLE
    reporter.say(allowed(config, _styles(run, "calibration"), audited))


def _run_stage(
    stage: Stage,
    stages: Collection[Stage],
    run: RunFolder,
    config: AuditConfig,
    start: Callable[[], Run],
    reporter: Reporter,
    deadline: Deadline,
) -> tuple[int, list[dict[str, Any]]]:
    """Do what is missing of a stage and commit its table; return the evaluations made and the shards set aside.

    stages: all of the flow.

    Raises InterruptedRunError where the deadline left what later stages need, or a shard of theirs was set aside.
    """
    folder = run.table(stage.table)
    work = stage.work(run, config)
    missing = [item for item in work if not _committed(folder, item)]
    lost: list[Receipt] = []
    evaluations = 0
    taken = deadline.taken(stage, missing)
    first = next(taken, None)
    if first is not None:
        total = sum(item.rows for item in work)
        done = total - sum(item.rows for item in missing)
        for receipt in reporter.watch(stage.name, total, done, start()(chain([first], taken))):
            evaluations += receipt.manifest.evaluations if receipt.manifest else 0
            if receipt.manifest is None:
                lost.append(receipt)
                reporter.say(f"{stage.name}: shard {receipt.work.shard} set aside: it {receipt.reason}")
    needed = stage.name in STAGES.ours() or any(stage.name in later.upstream for later in stages)
    if lost and stage.scope == "corpus" and needed:
        raise InterruptedRunError(
            f"{stage.name}: shard {lost[0].work.shard} {lost[0].reason}, and every later stage needs it; what was "
            "committed is whole: put that right and give the same command again",
            1,
        )
    left = deadline.left_of(stage)
    folder.commit_table(table_commit(stage, work, [receipt.work.shard for receipt in [*lost, *left]]))
    deadline.require(stage)
    named = [{"stage": stage.name, "shard": r.work.shard, "rows": r.work.rows, "reason": r.reason} for r in lost]
    return evaluations, named + _left(stage, left, reporter)


def _note(run: RunFolder, stage: Stage, reporter: Reporter) -> None:
    """What is said beyond a stage's table: the noise floor in run.json, the flagged in later lines."""
    folder = run.table(stage.table)
    if stage.table is UNCONDITIONAL:
        record = run.record() or {}
        if record.get("noise_floor", 0.0) is None:
            floors = folder.read_all(folder.current(), ["noise_floor"])["noise_floor"]
            run.write_record(record | {"noise_floor": pc.max(floors).as_py()})
    if stage.table is TRIAGE:
        reporter.flagged = cache(partial(_flagged, folder))


def _flagged(triage: TableFolder) -> int:
    """Audited prompts that are flagged."""
    decided = triage.read_all(triage.current(), ["role", "flagged"])
    return int(decided.filter((pc.field("role") == "audit") & pc.field("flagged")).num_rows)


def _styles(run: RunFolder, role: str) -> Counter[str | None]:
    """How many prompts of a role each style has."""
    corpus, found = run.table(CORPUS), Counter[str | None]()
    for manifest in corpus.current():
        if role_of(manifest) == role:
            found.update(corpus.read(manifest, ["style"])["style"].to_pylist())
    return found


def _left(stage: Stage, left: list[Receipt], reporter: Reporter) -> list[dict[str, Any]]:
    """What the deadline left of a stage, as one entry: a long night leaves thousands of shards."""
    if not left:
        return []
    rows = sum(receipt.work.rows for receipt in left)
    reporter.say(f"{stage.name}: {len(left):,} shards, {rows:,} rows: {left[0].reason}")
    return [{"stage": stage.name, "shard": f"{len(left):,} shards", "rows": rows, "reason": left[0].reason}]


def _committed(folder: TableFolder, item: Work) -> bool:
    manifest = folder.manifest(item.shard)
    if manifest is not None and manifest.input_digest != item.input_digest:
        raise IntegrityError(f"{folder.folder}: shard {item.shard} was made from other input than what is there now")
    return manifest is not None


def _sweep(run: RunFolder) -> None:
    """Remove what earlier drivers left half-written. Only the holder of the lock may.

    Raises IntegrityError where a picture of a current table is missing.
    """
    listed: set[str] = set()
    current: set[str] = set()
    for folder in run.every_folder():
        folder.sweep()
        pictures = {path for manifest in folder.manifests() for path in manifest.images}
        listed |= pictures
        if folder.fingerprint == run.fingerprint(folder.table.stage):
            current |= pictures
    sweep_images(run.root, listed)
    require_images(run.root, sorted(current))
    for place in (run.root, run.root / "report", run.root / EARLIER):
        for path in place.glob(f".*{IN_PROGRESS}"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
