"""What workers compute on: GPU shares that find room, and no device but the one that the run began for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.flow.deadline import Deadline
from pipelines.flow.identity import inputs_of
from pipelines.operations.validate import validate
from pipelines.stages.base import Stage, Work
from pipelines.workers import pool
from pipelines.workers import ray as ray_executor
from sharpaudit.config import RunConfig
from sharpaudit.devices import places_on
from sharpaudit.errors import UserError
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import UNCONDITIONAL
from tests.support.audits import audit, load, tables
from tests.support.real_audits import write_audit
from tests.support.shells import bare


@pytest.mark.parametrize(
    ("gpus", "share", "places"), [(0, 0.5, 0), (1, 1, 1), (1, 0.5, 2), (2, 0.6, 2), (2, 0.1, 20), (4, 2, 2), (3, 2, 1)]
)
def test_a_share_of_a_gpu_lies_on_one(gpus: int, share: float, places: int) -> None:
    assert places_on(gpus, share) == places


def test_workers_that_need_no_gpu_find_room_anywhere() -> None:
    assert places_on(0, 0) >= 10**6


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (("run.num_gpus=64",), r"run\.num_gpus = 64: there is room for 0 on 8 cores and \d GPUs of 1 machines"),
        (("run.threads=5",), r"run\.workers = 2, each with 5 threads .* there is room for 1 on 8 cores"),
    ],
)
def test_workers_that_find_no_room_are_refused_and_not_waited_for(
    config_path: Path, tmp_path: Path, asked: tuple[str, ...], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        audit(config_path, tmp_path / "run", "run.executor=ray", "run.workers=2", *asked)
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_worker_that_sees_another_device_than_the_driver_is_refused(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a cluster whose head has no GPU, the other way round.
    monkeypatch.setattr("pipelines.flow.identity.placement", lambda *_, **__: (torch.device("cuda"), torch.bfloat16))
    with pytest.raises(UserError, match="would compute on cpu in float32, but the run began for cuda in bfloat16"):
        audit(config_path, tmp_path / "run")
    assert not RunFolder.open(tmp_path / "run").table(UNCONDITIONAL).manifests()


def test_a_worker_that_other_jobs_leave_no_room_for_is_not_waited_for_without_end(
    config_path: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util import placement_group, remove_placement_group

    monkeypatch.setattr(pool, "WORKER_STARTS_WITHIN_S", 3.0)
    others = placement_group([{"CPU": 7}])
    ray.get(others.ready())
    line = r"run\.workers = 1: none is at work and none has started for 3 s; 1 cores and \d GPUs of the cluster are"
    try:
        with pytest.raises(UserError, match=line):
            audit(config_path, tmp_path / "run", "run.executor=ray", "run.workers=1", "run.threads=2")
    finally:
        remove_placement_group(others)


@pytest.mark.chaos
def test_work_goes_on_with_the_workers_that_find_room(
    config_path: Path, clean: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the loss of a machine in the night: nobody waits for a worker that has no place.

    Nor is work kept for it: a shard taken is done, also after a deadline.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    root, real, ahead = tmp_path / "run", Deadline.taken, []

    def taken(self: Deadline, stage: Stage, work: list[Work]) -> Iterator[Work]:
        for n, item in enumerate(real(self, stage, work), 1):
            ahead.append(n - len(RunFolder.open(root).table(stage.table).manifests()))
            yield item

    monkeypatch.setattr(Deadline, "taken", taken)
    others = placement_group([{"CPU": 5}])
    ray.get(others.ready())
    try:
        audit(config_path, root, "run.executor=ray", "run.workers=4", "run.threads=2")
    finally:
        remove_placement_group(others)
    assert tables(root) == tables(clean)
    # One at the only worker that found room, and one in hand.
    assert max(ahead) == 2


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("share", "seen"), [(0.0, ""), (0.5, "a mark of this test")])
def test_workers_without_a_share_are_kept_from_the_gpus(share: float, seen: str) -> None:
    """What a worker process sees, whatever its machine shows; tests/gpu looks at the devices themselves."""
    import ray

    environment = ray_executor._environment(RunConfig(executor="ray", num_gpus=share), 3)
    # With a share we set nothing: the value that the machine has, here the mark, must stay.
    machine = {"CUDA_VISIBLE_DEVICES": "a mark of this test", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    runtime = {"env_vars": machine | environment}
    worker = ray.remote(os.getenv).options(num_cpus=1, runtime_env=runtime)
    assert ray.get([worker.remote(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]) == [seen, "3"]


def test_workers_that_would_see_no_gpu_are_refused_at_once(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.flow.identity.placement", lambda *_, **__: (torch.device("cuda"), torch.bfloat16))
    with pytest.raises(UserError, match=r"run\.num_gpus = 0: the ray workers would see no GPU although the model is"):
        audit(config_path, tmp_path / "run", "run.executor=ray", "run.workers=2")
    assert not (tmp_path / "run" / "run.json").exists()


def test_validate_refuses_shares_that_do_not_fit(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(config_path, "run.executor=ray", "run.workers=2", "run.num_gpus=1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"each with run\.num_gpus = 1: there is room for 1 on 1 GPUs of this machine"):
        list(validate(config, measure_s=0.1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is what is tested")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_head_without_gpus_validates_what_its_workers_will_do(tmp_path: Path, dtype: str) -> None:
    asked = ("run.executor=ray", "run.address=auto", "run.num_gpus=1", f"model.dtype={dtype}")
    told = list(validate(load(write_audit(tmp_path, "epsilon"), *asked), measure_s=0.1))
    assert told[0].startswith("model: loads on cpu, where no GPU is")
    assert told[1].startswith(f"workers: will compute on cuda in {dtype}; the hours below are those of this machine")
    assert told[-1] == "valid: this audit would run"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is what is tested")
def test_gpus_are_reckoned_with_where_a_cluster_lends_them(tmp_path: Path) -> None:
    """A share of a GPU asked for: of a cluster that is joined, or of this machine, which has none."""
    asked = ("run.executor=ray", "run.num_gpus=1", "model.dtype=float32")
    path = write_audit(tmp_path, "epsilon")
    assert inputs_of(load(path, *asked, "run.address=auto")).device == "cuda"
    assert inputs_of(load(path, *asked)).device == "cpu"
    assert inputs_of(load(path, *asked, "run.address=auto"), alone=True).device == "cpu"


HALF_A_GPU_EACH = """
import os, sys
from pathlib import Path
import ray
from pipelines.audit import run_audit
from pipelines.flow.progress import Reporter
from sharpaudit import config as configuration

ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, object_store_memory=200 * 2**20,
         log_to_driver=False, logging_level="ERROR")
free = []

class Watching(Reporter):
    def watch(self, *args):
        for receipt in super().watch(*args):
            free.append(ray.available_resources().get("GPU", 0.0))
            yield receipt

root = Path(sys.argv[2])
shares = ["run.executor=ray", "run.workers=2", "run.num_gpus=0.5"]
config = configuration.load(Path(sys.argv[1]), shares)
run_audit(config, root, reporter=Watching(root, open(os.devnull, "w")))
print(min(free), ray.cluster_resources()["GPU"])
"""


@pytest.mark.chaos
def test_two_workers_hold_half_a_gpu_each(config_path: Path, clean: Path, tmp_path: Path) -> None:
    """Ray is told of a GPU that is not there: what it hands out is what is tested."""
    call = [sys.executable, "-W", "ignore", "-c", HALF_A_GPU_EACH, str(config_path), str(tmp_path / "run")]
    done = subprocess.run(call, env=bare(), capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0.0", "1.0"], done.stderr
    assert tables(tmp_path / "run") == tables(clean)
