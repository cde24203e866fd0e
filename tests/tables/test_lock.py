"""One driver a run; stale locks recognised; workers end with their driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sharpaudit.errors import UserError
from sharpaudit.tables import lock
from sharpaudit.tables.lock import Driver, Guard, LostRunError, Process, hold, holder
from tests.support.shells import bare

HOLDER = """
import sys, time
from pathlib import Path
from sharpaudit.tables.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def child(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A child process that has printed its first line."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True, env=bare()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.kill()


def test_a_second_driver_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with child(HOLDER, str(tmp_path)) as first:
        with pytest.raises(UserError, match=f"process {first.pid} on this machine"), hold(tmp_path):
            pass
        assert first.poll() is None
    with hold(tmp_path) as driver:
        assert holder(tmp_path) == driver
    assert holder(tmp_path) is None


def foreign(root: Path) -> None:
    process = replace(Process.this(), host="elsewhere", boot="other")
    (root / "run.lock").write_text(json.dumps(asdict(Driver("theirs", process))))
    (root / "run.lock.heartbeat").write_text("1")


@pytest.mark.usefixtures("jumping_clock")
def test_a_silent_lock_of_another_host_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time on this process's steady clock, whatever the machine's clock says."""
    monkeypatch.setattr(lock, "STALE_AFTER_S", 0.3)
    foreign(tmp_path)
    begun = time.monotonic()
    with hold(tmp_path, poll_s=0.05):
        assert time.monotonic() - begun > 0.3


@pytest.mark.usefixtures("jumping_clock")
def test_a_beating_lock_of_another_host_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE_AFTER_S", 3600.0)
    foreign(tmp_path)

    def beat(_: float) -> None:
        (tmp_path / "run.lock.heartbeat").write_text(str(time.monotonic()))

    monkeypatch.setattr(lock.time, "sleep", beat)
    with pytest.raises(UserError, match="host elsewhere"), hold(tmp_path):
        pass


def test_a_process_that_reuses_a_pid_is_not_its_predecessor() -> None:
    me = Process.this()
    assert me.alive()
    assert not replace(me, started=me.started - 100).alive()
    assert not replace(me, boot="before the reboot").alive()


def test_a_guard_refuses_once_the_lock_names_another(tmp_path: Path) -> None:
    with hold(tmp_path) as driver:
        Guard(tmp_path, driver.id)()
        foreign(tmp_path)
        with pytest.raises(LostRunError):
            Guard(tmp_path, driver.id)()


WORKER = """
import json, sys, time
from pathlib import Path
from sharpaudit.tables.lock import Driver, Process, end_with_driver, holder, record_worker
root = Path(sys.argv[1])
end_with_driver(root, holder(root), record_worker(root))
print("working", flush=True)
time.sleep(600)
"""


def seconds_of_a_worker_without_its_driver(root: Path) -> float:
    with child(HOLDER, str(root)) as driver, child(WORKER, str(root)) as worker:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        begun = time.monotonic()
        worker.wait()
        return time.monotonic() - begun


def test_a_worker_ends_within_two_seconds_of_its_driver(tmp_path: Path) -> None:
    # Again where it took longer: a machine that stood still for a moment is no slowness of ours.
    assert any(seconds_of_a_worker_without_its_driver(tmp_path) < 2 for _ in range(3))
    with hold(tmp_path):
        assert not list((tmp_path / "workers").iterdir())


def test_a_new_driver_waits_for_the_workers_of_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WORKERS_GONE_WITHIN_S", 0.2)
    (tmp_path / "workers").mkdir()
    record = tmp_path / "workers" / "w.json"
    with child("import time; print('up', flush=True); time.sleep(60)") as sleeper:
        started = lock.psutil.Process(sleeper.pid).create_time()
        record.write_text(json.dumps(asdict(replace(Process.this(), pid=sleeper.pid, started=started))))
        with pytest.raises(UserError, match=f"worker {sleeper.pid} of an earlier driver"), hold(tmp_path):
            pass
    with hold(tmp_path):
        assert not record.exists()
