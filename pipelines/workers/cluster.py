"""The Ray cluster of a run: one of our own on this machine, or the one that answers at `run.address`.

Our own is nobody else's: it has a token that lives in this process and in those it starts, a folder that only this user
may enter, ports that the system picks, and none of the RAY_ variables of the shell, which speak of other clusters (but
for `KEPT`, which speak of the machine). Nothing is written into the home folder, and afterwards the process has the
environment, the signal handlers and the Ray that it had.

Ray reads mode and token of its authentication once, into the C++ half of the process: the mode as `ray` is imported,
the token when it is first asked for. Variables that are set later reach the processes of a head and not its driver,
which then speaks to them without a token. So what is read is read again (`_read_again`) whenever the variables changed,
also in a process whose caller had imported or used Ray before.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharpaudit.errors import UserError, printable
from sharpaudit.origin import ROOT, imports_from

OBJECT_STORE_BYTES = 200 * 2**20
ANSWERS_WITHIN_S = 10.0
"""How long a connection to `run.address` may take. Ray itself tries for minutes, and says so line by line."""
KEPT = (
    "RAY_TMPDIR",
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE",
    "RAY_memory_usage_threshold",
    "RAY_memory_monitor_refresh_ms",
)
"""Variables of the shell that a cluster of our own heeds: where there is room, and when memory is short."""
LONGEST_FOLDER = 16
"""Bytes of a folder below which Ray's sockets still have names that the system allows, with what Ray adds to it."""
REFUSED = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, a file with the token that the cluster began with"


def in_use() -> bool:
    """Whether this process is connected to a Ray cluster already. Does not import Ray to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextmanager
def own_cluster(num_cpus: int) -> Iterator[None]:
    """A Ray cluster on this machine for the block. Raises UserError where Ray cannot start one."""
    folder = Path(tempfile.mkdtemp(prefix="sharpaudit-ray-", dir=_room()))
    token = secrets.token_hex(32)
    with _forgotten():
        with _variables({**_kept(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, **_OURS}):
            _init(
                "run.executor = ray: no Ray cluster could be started on this machine",
                f"what Ray tells is in {folder}; set RAY_TMPDIR to a folder with a short name and some GB of room, "
                "free memory, or go without Ray: run.executor = local",
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                # Ray opens its folder to everybody, so it is one within ours.
                _temp_dir=str(folder / "r"),
            )
        yield
    # After an error the logs of workers tell more, so they stay.
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """The Ray cluster at an address, or the one that "auto" finds, for the block.

    The mode and the token are those of the shell, as for every client of Ray; a token that is there is also used where
    RAY_AUTH_MODE says nothing and the cluster demands one. Raises UserError where no cluster lets this process in.
    """
    advice = (
        f"start one there or put the address right (`ray status --address {printable(address)}` must answer), with the "
        "Python and the Ray of this environment; leave run.address out to have a cluster started on this machine"
    )
    with _forgotten():
        with _variables(_all_of_ray()):
            _read_again()
            _require_an_answer(address, advice)
            _init(f"run.address = {printable(address)}: no Ray cluster lets this run in", advice, address=address)
        yield


_OURS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers without a GPU share are kept from the GPUs by us, whatever the version of Ray does about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def _forgotten() -> Iterator[None]:
    """Whatever becomes of the block, no cluster is connected after it, and mode and token are those of the process."""
    try:
        yield
    finally:
        try:
            _shut_down()
        finally:
            _forget()


def _shut_down() -> None:
    import ray

    ray.shutdown()


def _init(what: str, advice: str, **arguments: object) -> None:
    """`ray.init` with signal handlers left as they are; a UserError for whatever it raises."""
    import ray

    handlers = _handlers()
    _read_again()
    options = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"worker_process_setup_hook": imports_from(str(ROOT))},
    }
    try:
        ray.init(**options, **arguments)
    except SystemExit:
        # The answer to SIGTERM of Ray's own handler, which stands while it starts.
        handler = handlers.get(signal.SIGTERM)
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise
    except Exception as error:
        # Ray raises bare ones for what is missing, in the way or too slow.
        _shut_down()
        raise UserError(f"{what} ({_told(error)}); {advice}") from error
    finally:
        # Ray installs its own handler for SIGTERM; ours, which leave the run resumable, go back in.
        for signum, kept in handlers.items():
            signal.signal(signum, kept)


def _told(error: Exception) -> str:
    """Kind and first line of what Ray raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__, 400)


def _require_an_answer(address: str, advice: str) -> None:
    """Raises UserError where no Ray cluster answers at host:port, or demands another token than there is.

    What is no such address is left to Ray, which finds a cluster by it or refuses it. Asked beforehand, since Ray tries
    for minutes, and since a client that should show a token and has none ends its whole process.
    """
    import ray

    host, sign, port = address.rpartition(":")
    if not sign or "//" in address or not port.isdigit():
        return
    what = f"run.address = {printable(address)}"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_WITHIN_S):
            pass
    except (OSError, OverflowError) as error:
        raise UserError(f"{what}: nothing answers there ({printable(str(error))}); {advice}") from error
    if _mode() == "token" and not _has_token():
        raise UserError(f"{what}: RAY_AUTH_MODE = token, but there is no token; {REFUSED}")
    try:
        _raylet().GcsClient(address=address)
    except ray.exceptions.AuthenticationError as error:
        if _mode() or not _has_token():
            raise UserError(f"{what}: the cluster there refuses this run without its token; {REFUSED}") from error
        # There is a token, and nothing forbids it: by itself Ray uses it for "auto" only.
        os.environ["RAY_AUTH_MODE"] = "token"
        _read_again()
        _require_an_answer(address, advice)
    except (ray.exceptions.RayError, OSError, RuntimeError) as error:
        raise UserError(f"{what}: no Ray cluster answers there ({_told(error)}); {advice}") from error


def _raylet() -> Any:
    """The C++ half, of which no public name reads the variables again."""
    import ray._raylet

    return ray._raylet


def _room() -> str:
    """The folder for the folder of a cluster: as Ray chooses it, unless its name is too long for sockets in it."""
    chosen = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return chosen if "RAY_TMPDIR" in os.environ or len(os.fsencode(chosen)) <= LONGEST_FOLDER else "/tmp"  # noqa: S108


def _kept() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT if name in os.environ}


def _all_of_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


@contextmanager
def _variables(of_ray: Mapping[str, str]) -> Iterator[None]:
    """For the block there are these RAY_ variables and no others; afterwards every variable is what it was."""
    before = dict(os.environ)
    try:
        for name in _all_of_ray():
            del os.environ[name]
        os.environ.update(of_ray)
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def _handlers() -> dict[int, Any]:
    """What answers SIGINT and SIGTERM, where this thread may say so and Python knows."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    return {signum: handler for signum, handler in found.items() if handler is not None}


def _read_again() -> None:
    """Let Ray read mode and token from the variables as they are now.

    The mode first: with it a thread of an earlier connection that still ends could ask for a token that is gone.
    """
    raylet = _raylet()
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _mode() -> str:
    """RAY_AUTH_MODE, which is empty where it is not set."""
    return os.environ.get("RAY_AUTH_MODE", "").lower()


def _has_token() -> bool:
    return bool(_raylet().AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def _forget() -> None:
    """Give the process back the mode and the token that its variables name.

    By way of "disabled": a thread that still ends and found the mode "token" without a token would end the process.
    """
    with _variables(_all_of_ray() | {"RAY_AUTH_MODE": "disabled"}):
        _read_again()
    if _mode() != "token" or _has_token():
        _raylet().Config.initialize("")
