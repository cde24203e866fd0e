"""Who does the work: this process, or Ray actors. Both behind one signature; only this file imports ray.

An executor is a context manager that yields `run(work) -> iterator of receipts`, in no promised order. With
Ray each actor holds its models, takes one shard a call and has its own share of cores and GPU. The driver
never trusts Ray's retries: a shard whose actor died, or shows no life for `shard_timeout_s`, goes to a fresh actor, and
after `max_worker_deaths` of them it is quarantined, said, and the run goes on.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.stage import Receipt, ShardWorker, Stage, Work
from sharpaudit.config import AuditConfig, RunConfig
from sharpaudit.denoisers.devices import places_on, room_for, share_threads, usable_cores, use_threads
from sharpaudit.denoisers.pulse import on_answer
from sharpaudit.errors import TransientError, UserError
from sharpaudit.tables.files import CRASH
from sharpaudit.tables.lock import Driver, Guard, end_with_driver, last_life, record_worker, show_life
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.shards import Manifest

Run = Callable[[Iterable[Work]], Iterator[Receipt]]
TRANSIENT_TRIES = 3
OBJECT_STORE_BYTES = 200 * 2**20
NODES_JOIN_WITHIN_S = 60.0
"""How long the machines of a cluster that was just started may take to join it."""
WORKER_STARTS_WITHIN_S = 300.0
"""How long a run goes on without any worker, at its start or later."""


@contextmanager
def executor(root: Path, config: AuditConfig, driver: Driver, stages: Mapping[str, Stage]) -> Iterator[Run]:
    """The executor that the configuration names."""
    chosen = run_ray if config.run.executor == "ray" else run_local
    with chosen(root, config, driver, stages) as run:
        yield run


@contextmanager
def run_local(root: Path, config: AuditConfig, driver: Driver, stages: Mapping[str, Stage]) -> Iterator[Run]:
    """Serial, in this process."""
    use_threads(share_threads([usable_cores()], 1, config.run.threads))
    worker = ShardWorker(RunFolder(root, guard=Guard(root, driver.id)), stages)

    def run(work: Iterable[Work]) -> Iterator[Receipt]:
        for item in work:
            yield _tried(worker, item)

    yield run


def _tried(worker: ShardWorker, item: Work) -> Receipt:
    for attempt in range(TRANSIENT_TRIES):
        try:
            return Receipt(item, worker.do(item))
        except TransientError as error:
            if attempt == TRANSIENT_TRIES - 1:
                return Receipt(item, None, f"failed {TRANSIENT_TRIES} times: {error}")
    raise AssertionError("unreachable")


class ShardActor:
    """A Ray actor's body: a ShardWorker that ends with its driver."""

    def __init__(self, root: str, driver: Driver, threads: int, stages: Mapping[str, Stage]) -> None:
        use_threads(threads)
        self._record = record_worker(Path(root))
        end_with_driver(Path(root), driver, self._record)
        on_answer(show_life(self._record))
        self._worker = ShardWorker(RunFolder(Path(root), guard=Guard(Path(root), driver.id)), stages)

    def ready(self) -> Path:
        """The record that shows this worker's life, once the constructor is through."""
        return self._record

    def do(self, work: Work) -> Manifest:
        """Process and commit one shard."""
        return self._worker.do(work)

    def leave(self) -> None:
        """Take back the record of this worker before it is ended in order."""
        self._record.unlink(missing_ok=True)


@contextmanager
def run_ray(root: Path, config: AuditConfig, driver: Driver, stages: Mapping[str, Stage]) -> Iterator[Run]:
    """Ray actors; a cluster is started on this machine unless one is running or an address is given."""
    import ray

    started, threads = not ray.is_initialized(), config.run.threads
    if started and not config.run.address:
        threads = share_threads([usable_cores()], config.run.workers, threads)
    if started:
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        _start_ray(config, max(usable_cores(), config.run.workers * (threads or 1)) + 1)
        # Ray installs its own handler for SIGTERM; ours, which leave the run resumable, go back in.
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    pool = None
    try:
        threads = _find_room(config.run, threads)
        actor = ray.remote(ShardActor).options(
            num_cpus=threads,
            num_gpus=config.run.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": _environment(config.run, threads)},
        )
        pool = _Pool(lambda: actor.remote(str(root), driver, threads, stages), config.run)
        yield pool.run
    finally:
        if pool is not None:
            pool.close()
        if started:
            ray.shutdown()


def _environment(config: RunConfig, threads: int) -> dict[str, str]:
    """Of the workers. A fault that a test asked for (tables/files.py) too: a cluster does not know our environment."""
    fault = {name: os.environ[name] for name in (CRASH,) if name in os.environ}
    # Ray leaves all GPUs in sight of an actor that asks for none.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if config.num_gpus == 0 else {}
    return {"OMP_NUM_THREADS": str(threads)} | hidden | fault


def _start_ray(config: AuditConfig, num_cpus: int) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers without a GPU share are kept from the GPUs by us; otherwise Ray warns that it will do so one day.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not config.run.address:
        # A cluster of our own gets a secret of its own; Ray would write one into the user's home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    own: dict[str, Any] = {"num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    address = config.run.address or "local"
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **({} if config.run.address else own))
    except ConnectionError as error:
        raise UserError(f"run.address = {config.run.address}: no Ray cluster answers there ({error})") from error


def _find_room(config: RunConfig, asked: int | None) -> int:
    """Threads of each worker on this cluster, `asked` or a share.

    Raises UserError where the cluster is too small for all workers; what other jobs hold of it is not asked.
    """
    import ray

    deadline = time.monotonic() + (NODES_JOIN_WITHIN_S if config.address else 0.0)
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
        places = [places_on(n, config.num_gpus) for n in gpus]
        threads = share_threads(cores, config.workers, asked, places)
        room = room_for(threads, cores, places)
        if room >= config.workers:
            return threads
        if time.monotonic() > deadline:
            raise UserError(
                f"run.workers = {config.workers}, each with {threads} threads and run.num_gpus = {config.num_gpus:g}: "
                f"there is room for {room} on {sum(cores)} cores and {sum(gpus)} GPUs of {len(nodes)} machines; "
                "ask for fewer workers or smaller shares, or let more machines join first (ray status)"
            )
        time.sleep(1.0)


@dataclass
class _Call:
    """A shard at a worker. life: the last sign of it that was seen, at `seen` on this process's clock."""

    actor: Any
    work: Work
    life: int
    seen: float


class _Pool:
    """At most as many actors as asked for, each with at most one shard; kept across stages so that models stay loaded.

    Work goes on with those that have started; one for which there is no room yet joins when there is.
    """

    def __init__(self, start: Callable[[], Any], config: RunConfig) -> None:
        self._start, self._config = start, config
        self._idle: list[Any] = []
        self._calls: dict[Any, _Call] = {}
        self._starting: dict[Any, Any] = {}
        self._records: dict[Any, Path] = {}
        self._alone_since: float | None = None

    def run(self, work: Iterable[Work]) -> Iterator[Receipt]:
        import ray

        source, waiting = iter(work), deque[Work]()
        deaths: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        self._alone_since = None
        while True:
            self._hand_out(source, waiting)
            if not self._calls and not waiting:
                return
            done, _ = ray.wait([*self._calls, *self._starting], num_returns=1, timeout=1.0)
            for reference in done:
                if reference in self._starting:
                    self._arrived(reference)
                    continue
                call = self._calls.pop(reference)
                receipt = self._settle(reference, call.actor, call.work, deaths, failures)
                if receipt is not None:
                    yield receipt
                else:
                    waiting.append(call.work)
            self._end_hung()
            self._require_a_worker()

    def _hand_out(self, source: Iterator[Work], waiting: deque[Work]) -> None:
        """A shard for every idle worker; for one that finds none, all workers that are not there yet.

        No more than that one is taken before its time: after a deadline whatever was taken is still done.
        """
        while len(self._calls) < self._config.workers:
            item = waiting.popleft() if waiting else next(source, None)
            if item is None:
                return
            if not self._idle:
                waiting.appendleft(item)
                break
            actor = self._idle.pop()
            life = last_life(self._records[actor])
            self._calls[actor.do.remote(item)] = _Call(actor, item, life, time.monotonic())
        while waiting and len(self._calls) + len(self._starting) < self._config.workers:
            actor = self._start()
            self._starting[actor.ready.remote()] = actor

    def _arrived(self, reference: Any) -> None:
        import ray

        actor = self._starting.pop(reference)
        try:
            self._records[actor] = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(f"a worker could not start: {error}") from error
        self._idle.append(actor)

    def _require_a_worker(self) -> None:
        """Raises UserError where for long no worker has started and none is at work."""
        import ray

        if self._calls or self._idle:
            self._alone_since = None
            return
        self._alone_since = self._alone_since or time.monotonic()
        if time.monotonic() - self._alone_since > WORKER_STARTS_WITHIN_S:
            free = ray.available_resources()
            raise UserError(
                f"run.workers = {self._config.workers}: none is at work and none has started for "
                f"{WORKER_STARTS_WITHIN_S:.0f} s; {free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs of the "
                "cluster are free: wait for other jobs to end, or ask for fewer workers or smaller shares"
            )

    def _end_hung(self) -> None:
        """End the workers that show no life: their calls come back as deaths."""
        import ray

        now = time.monotonic()
        for reference, call in self._calls.items():
            life = last_life(self._records[call.actor])
            if life != call.life:
                call.life, call.seen = life, now
            elif now - call.seen > self._config.shard_timeout_s and not ray.wait([reference], timeout=0)[0]:
                ray.kill(call.actor)

    def _settle(
        self, reference: Any, actor: Any, work: Work, deaths: Counter[str], failures: Counter[str]
    ) -> Receipt | None:
        """The receipt of a finished call, or None when its work must be done again."""
        import ray

        try:
            manifest = ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
            # One that is only out of reach would keep its cores and its GPU from whoever takes its place.
            ray.kill(actor)
            self._records.pop(actor, None)
            deaths[work.shard] += 1
            if deaths[work.shard] < self._config.max_worker_deaths:
                return None
            return Receipt(work, None, f"ended {deaths[work.shard]} workers")
        except ray.exceptions.RayTaskError as error:
            self._idle.append(actor)
            cause = error.cause if isinstance(error.cause, BaseException) else error
            if not isinstance(cause, TransientError):
                raise cause from None
            failures[work.shard] += 1
            if failures[work.shard] < TRANSIENT_TRIES:
                return None
            return Receipt(work, None, f"failed {TRANSIENT_TRIES} times: {cause}")
        self._idle.append(actor)
        return Receipt(work, manifest)

    def close(self) -> None:
        """End the actors: those without work take back their record first."""
        import ray

        if sys.is_finalizing() or not ray.is_initialized():
            return
        # Those that are starting as well: one that has just recorded itself would leave its record.
        leaving = [actor.leave.remote() for actor in [*self._idle, *self._starting.values()]]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=5.0)
        for actor in [*self._idle, *self._starting.values(), *(call.actor for call in self._calls.values())]:
            ray.kill(actor)
