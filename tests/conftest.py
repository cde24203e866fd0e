"""What holds for every test, and nothing that the product needs or sets: what a user's shell lacks is missing here.

Set here are, each for a reason, and tests/test_conftest.py holds this list:

- the core of a test process (`sched_setaffinity`): two of them share the machine, and so do the processes that they
  start, which inherit it; a user's audit has all cores, of which it asks the system as well;
- the network guard (`addaudithook`): it sees every connection that Python code of the test process makes, so that no
  library can hold an older reference to what it guards. Child processes do not inherit it;
- hypothesis without deadlines (`register_profile`, `load_profile`): how long an example takes says nothing on a machine
  that others use too.
"""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# Before torch and numpy are loaded, so neither is above: they count the cores once, and two threads of a library that
# wait for each other on one core can take fifty times as long as one.
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER is not None and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


LONGEST = ("test_readme.py",)
"""Begun with: as the last file it would run for minutes beside an idle core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which `make test` hands files out; none of them depends on it."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


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
    """A command that a test calls sets the threads of this process: the next test has those that it found."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """At the sizes of tests that ask for it a second one costs more than it brings."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small Ray cluster for all tests that need one; started late and only for them, as a run starts its own."""
    from pipelines.workers.cluster import own_cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of its start; ours stay errors
        cluster = own_cluster(8)
        cluster.__enter__()
    yield
    cluster.__exit__(None, None, None)


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
