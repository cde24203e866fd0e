"""The ray executor: actors that hold their models and their share of cores and GPU; `pool` hands them their work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.stages.base import Doer, Opener, Work
from pipelines.workers.cluster import in_use, joined_cluster, own_cluster
from pipelines.workers.local import Run
from pipelines.workers.pool import Pool
from sharpaudit.config import RunConfig
from sharpaudit.devices import places_on, room_for, share_threads, usable_cores, use_threads
from sharpaudit.errors import UserError
from sharpaudit.tables.files import CRASH
from sharpaudit.tables.liveness import on_answer
from sharpaudit.tables.lock import Driver, Guard, end_with_driver, record_worker, show_life
from sharpaudit.tables.shards import Manifest

NODES_JOIN_WITHIN_S = 60.0
"""How long the machines of a cluster that was just started may take to join it."""


class ShardActor:
    """A Ray actor's body: somebody who does shards, and ends with its driver."""

    def __init__(self, root: str, driver: Driver, threads: int, opener: Opener) -> None:
        use_threads(threads)
        self._root, self._driver, self._opener = Path(root), driver, opener
        self._record = record_worker(self._root)
        end_with_driver(self._root, driver, self._record)
        on_answer(show_life(self._record))
        self._worker: Doer | None = None

    def ready(self) -> Path:
        """The record that shows this worker's life, once the constructor is through."""
        return self._record

    def do(self, work: Work) -> Manifest:
        """Process and commit one shard. Raises UserError where a foreign plug is another than the run began with."""
        if self._worker is None:
            # Not as the actor starts: what is refused then comes to the driver as an actor that died.
            self._worker = self._opener(self._root, Guard(self._root, self._driver.id))
        return self._worker.do(work)

    def leave(self) -> None:
        """Take back the record of this worker before it is ended in order."""
        self._record.unlink(missing_ok=True)


@contextmanager
def run_ray(root: Path, config: RunConfig, driver: Driver, opener: Opener) -> Iterator[Run]:
    """Ray actors: on the cluster that this process uses already, the one at `run.address`, or one of our own."""
    with _cluster(config) as threads:
        import ray

        threads = _find_room(config, threads)
        actor = ray.remote(ShardActor).options(
            num_cpus=threads,
            num_gpus=config.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": _environment(config, threads)},
        )
        pool = Pool(lambda: actor.remote(str(root), driver, threads, opener), config)
        try:
            yield pool.run
        finally:
            pool.close()


@contextmanager
def _cluster(config: RunConfig) -> Iterator[int | None]:
    """The cluster of the block, and the threads that each worker shall have on it, where that is known by now."""
    if in_use():
        yield config.threads
    elif config.address:
        with joined_cluster(config.address):
            yield config.threads
    else:
        threads = share_threads([usable_cores()], config.workers, config.threads)
        with own_cluster(max(usable_cores(), config.workers * threads) + 1):
            yield threads


def _environment(config: RunConfig, threads: int) -> dict[str, str]:
    """Of the workers. A fault that a test asked for (tables/files.py) too: a cluster does not know our environment."""
    fault = {name: os.environ[name] for name in (CRASH,) if name in os.environ}
    # Ray leaves all GPUs in sight of an actor that asks for none.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if config.num_gpus == 0 else {}
    return {"OMP_NUM_THREADS": str(threads)} | hidden | fault


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
