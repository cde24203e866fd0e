"""One driver per run folder, and no worker of an earlier one.

`run.lock` names the driver (host, boot, pid, process start time, a random driver id); its heartbeat file is
rewritten every 30 s. A lock of this host is stale when that process is gone; a lock of another host when
its heartbeat has not changed for 5 minutes by the reader's own clock. Taking over happens under an
advisory file lock, so two takers cannot both win. Every commit asks `Guard` first: a process whose
driver no longer holds the run publishes nothing. Workers record themselves under `workers/` and end by
themselves within 2 s of their driver; a new driver waits for them before it sweeps.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from sharpaudit.errors import UserError
from sharpaudit.tables.records import replace_file

HEARTBEAT_S = 30.0
STALE_AFTER_S = 300.0
LIFE_S = 1.0
WORKERS_GONE_WITHIN_S = 30.0


class LostRunError(Exception):
    """This process's driver no longer holds the run: nothing more may be published."""


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for another with the same pid."""

    host: str
    boot: str
    pid: int
    started: float

    @staticmethod
    def this() -> Process:
        """The calling process."""
        boot = Path("/proc/sys/kernel/random/boot_id")
        boot_id = boot.read_text(encoding="utf-8").strip() if boot.exists() else str(psutil.boot_time())
        return Process(socket.gethostname(), boot_id, os.getpid(), psutil.Process().create_time())

    def on_this_host(self) -> bool:
        """Whether its life can be seen from here."""
        return self.host == Process.this().host

    def alive(self) -> bool:
        """Whether it still runs; only meaningful on its own host."""
        here = Process.this()
        if (self.host, self.boot) != (here.host, here.boot):
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class Driver:
    """Who holds a run."""

    id: str
    process: Process


def holder(root: Path) -> Driver | None:
    """The driver that the lock names, or None."""
    try:
        tree = json.loads((root / "run.lock").read_bytes())
        return Driver(tree["id"], Process(**tree["process"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


class Guard:
    """Called before a publication: raises LostRunError unless the lock still names `driver_id`."""

    def __init__(self, root: Path, driver_id: str) -> None:
        self._root, self._driver_id = root, driver_id

    def __call__(self) -> None:
        found = holder(self._root)
        if found is None or found.id != self._driver_id:
            raise LostRunError(f"{self._root}: another driver holds the run; this process publishes nothing")


@contextmanager
def hold(root: Path, say: Callable[[str], None] = lambda _: None, poll_s: float = 1.0) -> Iterator[Driver]:
    """Hold the run for the length of the block. Raises UserError when another driver does."""
    driver = _acquire(root, say, poll_s)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(root, stop), name="heartbeat", daemon=True)
    beat.start()
    try:
        _wait_for_workers(root, poll_s)
        yield driver
    finally:
        stop.set()
        beat.join()
        _release(root, driver)


def _release(root: Path, driver: Driver) -> None:
    found = holder(root)
    if found is not None and found.id == driver.id:
        for name in ("run.lock", "run.lock.heartbeat"):
            (root / name).unlink(missing_ok=True)


def _acquire(root: Path, say: Callable[[str], None], poll_s: float) -> Driver:
    driver = Driver(uuid.uuid4().hex, Process.this())
    seen: tuple[float, Any] | None = None
    while True:
        with _takeover(root):
            found = holder(root)
            if found is None or (found.process.on_this_host() and not found.process.alive()) or _stale(seen):
                try:
                    replace_file(root / "run.lock", json.dumps(asdict(driver)).encode())
                    _write_heartbeat(root)
                except BaseException:
                    _release(root, driver)
                    raise
                return driver
        if found.process.on_this_host():
            raise UserError(
                f"{root}: process {found.process.pid} on this machine is already running this audit; "
                "wait for it (sharpaudit status shows it) or stop it first"
            )
        pulse = (found.id, _pulse(root))
        if seen is None or seen[1] != pulse:
            if seen is not None:
                raise UserError(
                    f"{root}: a driver on host {found.process.host} is running this audit (its heartbeat moves)"
                )
            say(f"the lock is held by host {found.process.host}; watching its heartbeat for {STALE_AFTER_S:.0f} s")
            seen = (time.monotonic(), pulse)
        time.sleep(poll_s)


def _stale(seen: tuple[float, Any] | None) -> bool:
    return seen is not None and time.monotonic() - seen[0] > STALE_AFTER_S


def _pulse(root: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return (root / "run.lock.heartbeat").read_bytes()
    return None


def _write_heartbeat(root: Path) -> None:
    replace_file(root / "run.lock.heartbeat", f"{time.time():.3f} {uuid.uuid4().hex}\n".encode())


def _beat(root: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        # A heartbeat that cannot be written (a full disk) must not end a run that may still finish.
        with suppress(OSError):
            _write_heartbeat(root)


@contextmanager
def _takeover(root: Path) -> Iterator[None]:
    descriptor = os.open(root / ".takeover", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def record_worker(root: Path) -> Path:
    """Record the calling process as a worker of the run; remove the file when it ends in order."""
    process = Process.this()
    path = root / "workers" / f"{process.host}-{process.pid}.json"
    path.parent.mkdir(exist_ok=True)
    replace_file(path, json.dumps(asdict(process)).encode())
    return path


def show_life(record: Path) -> Callable[[], None]:
    """What a worker calls as it gets on: its record is touched, once in `LIFE_S` at most."""
    last = time.monotonic()

    def touch() -> None:
        nonlocal last
        if time.monotonic() - last >= LIFE_S:
            last = time.monotonic()
            # Gone when the worker has been told to leave; a disk that refuses is met by the commit.
            with suppress(OSError):
                os.utime(record)

    return touch


def last_life(record: Path) -> int:
    """A number that changes whenever the worker of this record has shown life; 0 where the record cannot be seen."""
    try:
        return record.stat().st_mtime_ns
    except OSError:
        # Gone, or on a disk that is not there for a moment, which must not end a run.
        return 0


def _wait_for_workers(root: Path, poll_s: float) -> None:
    deadline = time.monotonic() + WORKERS_GONE_WITHIN_S
    for path in sorted((root / "workers").glob("*.json")):
        worker = Process(**json.loads(path.read_bytes()))
        # A worker of another host removes its record itself, or is gone with its host by the deadline.
        while path.exists() and (worker.alive() or not worker.on_this_host()) and time.monotonic() < deadline:
            time.sleep(min(poll_s, 0.1))
        if worker.alive():
            raise UserError(
                f"{root}: worker {worker.pid} of an earlier driver is still running; stop it, then run again"
            )
        path.unlink(missing_ok=True)


def end_with_driver(root: Path, driver: Driver, record: Path, poll_s: float = 0.5) -> None:
    """End this process within 2 s of its driver's end: a watching thread, for workers only."""

    def watch() -> None:
        while True:
            found = holder(root)
            replaced = found is None or found.id != driver.id
            gone = driver.process.on_this_host() and not driver.process.alive()
            if replaced or gone:
                record.unlink(missing_ok=True)
                os._exit(0)
            time.sleep(poll_s)

    threading.Thread(target=watch, name="end-with-driver", daemon=True).start()
