"""What holds for every test: no network but this machine, no hub, a thread a core, deterministic kernels.

The guard sees every connection that Python code of the test process makes (an audit hook, so that no library
can hold an older reference to what it guards). Child processes inherit the environment, not the guard.
"""

from __future__ import annotations

import ipaddress
import os
import random
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray asks for a token by default and would write one into the home folder.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))

# Two test processes share two cores: each is bound to one of them, and so are its children and what either computes.
# With two threads each they would wait for one another.
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER is not None and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})
THREADS = 2 if WORKER is None else 1
torch.set_num_threads(THREADS)
torch.use_deterministic_algorithms(True)
# How long an example takes says nothing on a machine that others use too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class NetworkBlockedError(RuntimeError):
    """A test reached for the network. No OSError, which the code under test may take for a server that is down."""


def is_local(host: object) -> bool:
    """Whether a host is this machine's loopback or no host at all."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse connections, datagrams and name look-ups that leave the machine."""
    if event in ("socket.connect", "socket.sendto"):
        sock, address = arguments
        if sock.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            raise NetworkBlockedError(f"tests reach no network: {event} {address}")
    elif event == "socket.getaddrinfo" and not is_local(arguments[0]):
        raise NetworkBlockedError(f"tests reach no network: {event} {arguments[0]}")


sys.addaudithook(guard)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """A command that a test calls sets the threads of this process: the next test has its own again."""
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small Ray cluster for all tests that need one; started late and only for them."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of its start; ours stay errors
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
        )
    yield
    ray.shutdown()


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """time.time of this process is up to three days behind, then ahead, in turn; by how much, in the order of calls."""
    now, draw = time.time, random.Random(0)
    offsets: list[float] = []

    def jumping() -> float:
        offsets.append(draw.uniform(1, 3) * 86_400 * (1 if len(offsets) % 2 else -1))
        return now() + offsets[-1]

    monkeypatch.setattr(time, "time", jumping)
    return offsets
