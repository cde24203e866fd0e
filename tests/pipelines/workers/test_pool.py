"""The pool of Ray actors: real actors, with a body of a few lines, that are lost or do not start."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pipelines.stages.base import Work
from pipelines.workers import pool
from pipelines.workers.pool import Pool
from sharpaudit.config import RunConfig
from sharpaudit.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_cluster")
ENDS = "its process ends"


def new_actor(failure: str = "") -> Any:
    """An actor that takes a third of a second for a shard, or ends as it starts."""
    import ray

    class Body:  # in here, so that it travels by value: workers cannot import this file
        def __init__(self, failure: str) -> None:
            if failure == ENDS:
                os._exit(1)
            if failure:
                raise OSError(failure)

        def ready(self) -> Path:
            return Path("record")

        def do(self, work: Work) -> str:
            time.sleep(0.3)
            return work.shard

        def leave(self) -> None:
            """There is no record."""

    return ray.remote(num_cpus=1)(Body).remote(failure)


def shards(n: int) -> list[Work]:
    return [Work("score", f"audit-{i}", 1, "digest") for i in range(n)]


def shards_until(enough: Callable[[], bool]) -> Iterator[Work]:
    """Work without end until it is enough: a busy machine takes many seconds to start a process."""
    deadline = time.monotonic() + 240
    for i in count():
        if enough():
            return
        assert time.monotonic() < deadline, "what the test waits for has not come about"
        yield Work("score", f"until-{i}", 1, "digest")


@contextmanager
def pool_of(failures: Iterator[str], **settings: int) -> Iterator[tuple[Pool, list[Any]]]:
    """A pool whose actors fail in turn as told, and the list that they are added to as they are started."""
    started: list[Any] = []

    def start() -> Any:
        started.append(new_actor(next(failures)))
        return started[-1]

    with closing(Pool(start, RunConfig(executor="ray", **settings))) as opened:
        yield opened, started


def wait_until_dead(actor: Any) -> None:
    """ray.kill returns before that."""
    import ray

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            ray.get(actor.ready.remote())
        except ray.exceptions.RayActorError:
            return
        time.sleep(0.1)
    raise AssertionError("the worker lives on")


def lose_all(actors: list[Any]) -> None:
    import ray

    for actor in actors:
        ray.kill(actor)
    for actor in actors:
        wait_until_dead(actor)


@pytest.mark.chaos
def test_work_goes_on_with_others_when_workers_end_as_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one machine of a cluster does not see the run's folder."""
    monkeypatch.setattr(pool, "START_AGAIN_S", 3600.0)
    with pool_of(chain([""], repeat("no such folder")), workers=2, max_worker_deaths=2) as (opened, started):
        work = chain(shards_until(lambda: opened._start_again_at > 0.0), shards(4))
        receipts = list(opened.run(work))
    assert all(receipt.manifest == receipt.work.shard for receipt in receipts)
    assert {work.shard for work in shards(4)} <= {receipt.work.shard for receipt in receipts}
    # After two failures in turn no more are started; one may precede the start of the one that works.
    assert len(started) in (3, 4)


@pytest.mark.chaos
def test_a_place_where_workers_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only worker is lost while no more are started for others' failures: its place is known to be good."""
    monkeypatch.setattr(pool, "START_AGAIN_S", 3600.0)
    before: list[Any] = []  # those that were started before the only worker is lost
    failures = chain([""], ("" if before else "no such folder" for _ in count()))
    with pool_of(failures, workers=2, max_worker_deaths=2) as (opened, started):
        for receipt in opened.run(shards_until(lambda: len(started) > len(before) > 0)):
            assert receipt.manifest == receipt.work.shard
            if opened._start_again_at > 0.0 and not before:
                before.extend(started)
                lose_all(started[:1])
        assert len(started) > len(before) > 0


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("failure", "reason"), [("no such folder", "OSError: no such folder"), (ENDS, ".*(died|exit|connection).*")]
)
def test_a_run_of_which_no_worker_starts_is_refused_with_the_reason(failure: str, reason: str) -> None:
    line = (
        rf"^run\.workers = 2: none is at work, and 4 in turn ended as they started, the last with: {reason}; put that"
    )
    with pool_of(repeat(failure), workers=2, max_worker_deaths=3) as (opened, _), pytest.raises(UserError, match=line):
        list(opened.run(shards(4)))


@pytest.mark.chaos
def test_idle_workers_lost_between_stages_cost_no_shard_a_death() -> None:
    with pool_of(repeat(""), workers=3, max_worker_deaths=1) as (opened, started):
        list(opened.run(shards(9)))
        before = len(started)
        lose_all(started)
        receipts = list(opened.run(shards(1)))
    assert [(receipt.manifest, receipt.reason) for receipt in receipts] == [("audit-0", "")]
    assert len(started) > before


@pytest.mark.chaos
def test_a_machine_lost_with_its_idle_workers_is_one_death() -> None:
    """A stage of a single shard: it must not be set aside for workers that never began it."""
    with pool_of(repeat(""), workers=3, max_worker_deaths=2) as (opened, started):
        list(opened.run(shards(9)))
        before, at_work = len(started), opened._call

        def lose_first(actor: Any, item: Work) -> None:
            lose_all(started[:before])
            at_work(actor, item)

        opened._call = lose_first  # type: ignore[method-assign]
        (receipt,) = opened.run(shards(1))
    assert (receipt.manifest, receipt.reason) == ("audit-0", "")


def test_the_wait_for_a_worker_begins_anew_with_each_stage() -> None:
    with pool_of(repeat(""), workers=1) as (opened, _):
        opened._alone_since = time.monotonic() - 10_000
        (receipt,) = opened.run(shards(1))
    assert receipt.manifest == "audit-0"


@pytest.mark.parametrize("lost", ["worker", pytest.param("receipt", marks=pytest.mark.chaos)])
def test_a_worker_that_is_only_out_of_reach_is_ended(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """Left alive it would keep its cores and its GPU from whoever takes its place; its shard is done again."""
    import ray

    away = ray.exceptions.ActorUnavailableError("out of reach", None)
    error = away if lost == "worker" else ray.exceptions.ObjectLostError("00" * 28, None, "")

    with pool_of(repeat("")) as (opened, started):
        list(opened.run(shards(1)))
        (actor,) = started
        with monkeypatch.context() as patch:
            patch.setattr(ray, "get", Mock(side_effect=error))
            assert opened._settle(None, actor, shards(1)[0], Counter(), Counter()) is None
        assert not opened._records
        wait_until_dead(actor)
