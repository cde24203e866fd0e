"""Ray actors at work: who has which shard, who starts, who was lost.

The driver never trusts Ray's retries: a shard whose actor died, or shows no life for `shard_timeout_s`, goes to a fresh
actor, and after `max_worker_deaths` of them it is quarantined, said, and the run goes on. Actors that end as they start
cost no shard a death: the run goes on with the others, and is refused where there are none.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.stages.base import TRANSIENT_TRIES, Receipt, Work
from sharpaudit.config import RunConfig
from sharpaudit.errors import TransientError, UserError
from sharpaudit.tables.lock import last_life

WORKER_STARTS_WITHIN_S = 300.0
"""How long a run goes on without any worker, at its start or later."""
START_AGAIN_S = 60.0
"""How long those at work stay alone after `max_worker_deaths` workers in turn that ended as they started, and after
each further one."""


@dataclass
class _Call:
    """A shard at a worker. life: the last sign of it that was seen, at `seen` on this process's clock."""

    actor: Any
    work: Work
    life: int
    seen: float


class Pool:
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
        self._failed_starts = 0
        self._last_failure = ""
        self._start_again_at = 0.0

    def run(self, work: Iterable[Work]) -> Iterator[Receipt]:
        import ray

        source, waiting = iter(work), deque[Work]()
        deaths: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        self._alone_since, self._last_failure = None, ""
        self._begin_starts_anew()
        self._ask_idle()
        while True:
            self._hand_out(source, waiting)
            if not self._calls and not waiting:
                return
            self._require_a_worker()
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
            self._call(self._idle.pop(), item)
        while waiting and len(self._calls) + len(self._starting) < self._config.workers:
            if time.monotonic() < self._start_again_at:
                return
            actor = self._start()
            self._starting[actor.ready.remote()] = actor

    def _call(self, actor: Any, item: Work) -> None:
        life = last_life(self._records[actor])
        self._calls[actor.do.remote(item)] = _Call(actor, item, life, time.monotonic())

    def _ask_idle(self) -> None:
        """Let the idle workers report before they get a shard: a machine takes all of them with it.

        A shard given to a lost one would count a death that it had no part in.
        """
        # Also those that have been asked: the answer may be older than the loss.
        asked = [*self._idle, *(actor for actor in self._starting.values() if actor in self._records)]
        self._starting = {call: actor for call, actor in self._starting.items() if actor not in self._records}
        self._starting |= {actor.ready.remote(): actor for actor in asked}
        self._idle.clear()

    def _arrived(self, reference: Any) -> None:
        """A worker has reported, or was lost before it did: one that starts, or one that was idle."""
        import ray

        actor = self._starting.pop(reference)
        try:
            self._records[actor] = ray.get(reference)
        except ray.exceptions.RayError as error:
            if not self._lose(actor):
                self._failed_starts += 1
                self._last_failure = _reason(error)
                if self._failed_starts >= self._config.max_worker_deaths:
                    self._start_again_at = time.monotonic() + START_AGAIN_S
            return
        self._failed_starts = 0
        self._idle.append(actor)

    def _lose(self, actor: Any) -> bool:
        """End an actor that does not answer; whether it had ever started.

        One that is only out of reach would keep its cores and its GPU from whoever takes its place.
        """
        import ray

        ray.kill(actor)
        had_started = self._records.pop(actor, None) is not None
        if had_started:
            # The place that it leaves is one where workers start.
            self._begin_starts_anew()
        return had_started

    def _begin_starts_anew(self) -> None:
        self._failed_starts, self._start_again_at = 0, 0.0

    def _require_a_worker(self) -> None:
        """Raises UserError where none is at work and none starts: for long, or several times in turn."""
        import ray

        if self._calls or self._idle:
            self._alone_since = None
            return
        if not self._starting and self._failed_starts >= self._config.max_worker_deaths:
            raise UserError(
                f"run.workers = {self._config.workers}: none is at work, and {self._failed_starts} in turn ended as "
                f"they started, the last with: {self._last_failure}; put that right on the machine where it started, "
                "or leave the machine out (Ray's logs there tell more), and give the same command again"
            )
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
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError):
            # The last: a machine that was lost after its worker had committed, with the receipt.
            self._lose(actor)
            self._ask_idle()
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


def _reason(error: Exception) -> str:
    """What ended a worker as it started: the last line of Ray's story that tells something."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("The actor never ran")]
    return told[-1] if told else type(error).__name__
