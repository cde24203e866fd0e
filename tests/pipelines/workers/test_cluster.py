"""The cluster of a run, as a user starts it: bare shells, shells of another cluster, callers that used Ray before.

The tests' own cluster stands for somebody else's on the same machine: nothing here may join it unasked.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from pipelines.workers import cluster
from sharpaudit.config import RunConfig
from sharpaudit.errors import UserError
from tests.support.audits import command, finish, tables
from tests.support.shells import bare, left_at_home

RAY = ("--executor", "ray", "--workers", "2")
OF_ANOTHER_CLUSTER = {
    "RAY_ADDRESS": "192.0.2.1:6379",
    "RAY_AUTH_MODE": "disabled",
    "RAY_AUTH_TOKEN": "of another cluster",
    "RAY_AUTH_TOKEN_PATH": "/nowhere/token",
    "RAY_NAMESPACE": "theirs",
    "RAY_RUNTIME_ENV": '{"working_dir": "/nowhere"}',
    "RAY_USE_TLS": "1",
    "RAY_TLS_CA_CERT": "/nowhere/ca.crt",
    "RAY_REDIS_ADDRESS": "192.0.2.1:6380",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"working_dir": "/nowhere"}}',
}
"""What a shell may hold of a cluster elsewhere."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with the token of another cluster."""
    folder = tmp_path / "home"
    (folder / ".ray").mkdir(parents=True)
    (folder / ".ray" / "auth_token").write_text(secrets.token_hex(16))
    return folder


@pytest.mark.usefixtures("ray_cluster")
def test_an_audit_runs_over_ray_from_any_shell_and_any_folder(
    config_path: Path, clean: Path, tmp_path: Path, home: Path
) -> None:
    """Started where packages of our names lie, one of them on PYTHONPATH, with variables of another cluster."""
    for name in ("pipelines", "sharpaudit"):
        package = tmp_path / "theirs" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('a package of the user, not of sharpaudit')\n")
    lib = tmp_path / "lib"
    lib.mkdir()
    (tmp_path / "theirs" / "pipelines").rename(lib / "pipelines")
    (tmp_path / "theirs" / "pipelines").symlink_to(lib / "pipelines")
    shell = bare(OF_ANOTHER_CLUSTER, home)
    shell["PYTHONPATH"] = os.pathsep.join([str(lib), *filter(None, [shell.get("PYTHONPATH")])])
    call = command("run", config_path, "--out", tmp_path / "run", *RAY, shell=shell, cwd=tmp_path / "theirs")
    code, _, err = finish(call)
    assert code == 0, err
    assert tables(tmp_path / "run") == tables(clean)
    assert [path.name for path in home.rglob("*")] == [".ray", "auth_token"]


CALLER = """
import os, signal, sys, threading
import ray
from pipelines.workers.cluster import in_use, own_cluster

def state():
    return dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

before, seen = state(), []
for _ in range(2):
    with own_cluster(3):
        assert in_use() and state() == before
        seen.append((ray.cluster_resources()["CPU"], ray.get_runtime_context().gcs_address))
    assert not in_use() and state() == before
print(seen)
os.environ.pop("RAY_AUTH_MODE", None)
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
assert ray.cluster_resources()["CPU"] == 1
with own_cluster(2) if not in_use() else __import__("contextlib").nullcontext():
    assert ray.cluster_resources()["CPU"] == 1
"""


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("mode", ["disabled", "token", None])
def test_a_caller_that_imported_ray_before_has_its_own_ray_again(mode: str | None, home: Path) -> None:
    """Twice a cluster of ours, with another token each, then one of the caller's own by its own token."""
    shell = bare({"RAY_AUTH_MODE": mode} if mode else {}, home)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALLER], env=shell, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(3.0, ") == 2


JOINS = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit(9)
"""
"""The first call of every client."""


@pytest.fixture
def address(ray_cluster: None) -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.mark.chaos
@pytest.mark.parametrize("more", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}])
def test_nobody_else_may_use_our_cluster(address: str, more: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", JOINS, address], env=bare(more), check=False, capture_output=True)
    assert done.returncode == 9, done.stderr


def test_the_folder_of_our_cluster_is_for_this_user_alone(ray_cluster: None) -> None:
    """Its sockets and logs. Ray gives its own folder to everybody, so ours is the one above."""
    ours = {
        argument.partition("=")[2]
        for process in psutil.Process().children(recursive=True)
        if process.name() == "raylet"
        for argument in process.cmdline()
        if argument.startswith(("--temp_dir=", "--temp-dir="))
    }
    (folder,) = map(Path, ours)
    assert folder.parent.name.startswith("sharpaudit-ray-")
    assert folder.parent.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def token() -> str:
    """Of the tests' own cluster."""
    return str(cluster._raylet().AuthenticationTokenLoader.instance().get_raw_token())


def joined(config_path: Path, root: Path, address: str, shell: dict[str, str]) -> tuple[int, str]:
    code, _, err = finish(
        command("run", config_path, "--out", root, *RAY, "--set", f"run.address={address}", shell=shell)
    )
    return code, err


@pytest.mark.chaos
@pytest.mark.parametrize("where", ["variable", "file", "home"])
def test_a_token_cluster_is_joined_with_its_token(
    config_path: Path, clean: Path, tmp_path: Path, address: str, token: str, where: str
) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(token if where == "home" else "of another cluster")
    (tmp_path / "token").write_text(token)
    told = {
        "variable": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        "file": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        "home": {},
    }[where]
    code, err = joined(config_path, tmp_path / "run", address, bare(told, home))
    assert code == 0, err
    assert tables(tmp_path / "run") == tables(clean)


@pytest.mark.chaos
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"RAY_AUTH_MODE": "token"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 16},
        {"RAY_AUTH_MODE": "disabled"},
    ],
)
def test_without_its_token_one_line_says_what_to_set(
    config_path: Path, tmp_path: Path, address: str, more: dict[str, str]
) -> None:
    code, err = joined(config_path, tmp_path / "run", address, bare(more))
    assert code == 2, err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("sharpaudit: ")]
    assert f"run.address = {address}: " in line
    assert "RAY_AUTH_TOKEN_PATH=FILE" in line


@pytest.fixture
def closed() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return "{}:{}".format(*server.getsockname())


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would touch the Ray that this process may be using does nothing."""
    for name in ("_read_again", "_forget", "_shut_down"):
        monkeypatch.setattr(cluster, name, lambda: None)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("asked", ["CLOSED", "foo", "127.0.0.1:99999", "ray://127.0.0.1:10001"])
def test_an_address_where_no_cluster_answers_is_one_line(closed: str, asked: str) -> None:
    joining = cluster.joined_cluster(asked.replace("CLOSED", closed))
    with pytest.raises(UserError, match=r"^run\.address = ") as caught, joining:
        pass
    assert "\n" not in str(caught.value)
    assert "leave run.address out" in str(caught.value)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Failed to connect"),
        RuntimeError("Failed to start GCS.\n Last 0 lines of error files"),
        ValueError("bad port"),
        TimeoutError(""),
        Exception("The current node timed out during startup."),
        OSError("AF_UNIX path length cannot exceed 107 bytes"),
        "AuthenticationError",
    ],
    ids=lambda error: error if isinstance(error, str) else type(error).__name__,
)
def test_whatever_ray_raises_as_it_starts_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception | str) -> None:
    import ray

    raised = ray.exceptions.AuthenticationError("no token") if isinstance(error, str) else error

    def init(**_: object) -> None:
        os.environ["RAY_LEFT_BEHIND"] = "by Ray"
        raise raised

    monkeypatch.setattr(ray, "init", init)
    before, starting = dict(os.environ), cluster.own_cluster(1)
    with pytest.raises(UserError, match=r"^run\.executor = ray: no Ray cluster could be started") as caught, starting:
        pass
    assert "\n" not in str(caught.value)
    assert "run.executor = local" in str(caught.value)
    assert dict(os.environ) == before


@pytest.mark.usefixtures("no_ray")
def test_a_signal_while_ray_starts_ends_the_run_as_at_any_other_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts its own handler in, which would end the process with the code 15."""
    import ray

    from pipelines.flow.signals import InterruptedRunError, install

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    install()
    try:
        ours = signal.getsignal(signal.SIGTERM)
        with pytest.raises(InterruptedRunError) as caught, cluster.own_cluster(1):
            pass
        assert caught.value.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_run_in_a_thread_leaves_the_signals_alone() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(cluster._handlers()))
    thread.start()
    thread.join()
    assert found == [{}]


def test_sockets_get_a_short_name_unless_the_user_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/" + "x" * 60)
    assert cluster._room() == "/tmp"
    monkeypatch.setenv("RAY_TMPDIR", "/y")
    assert cluster._room() == "/y"


def test_ray_s_word_for_a_cluster_of_our_own_is_none() -> None:
    assert RunConfig(address="local").address is None
    assert RunConfig(address="auto").address == "auto"


def test_nothing_was_written_into_the_home_of_a_bare_shell() -> None:
    """Of all the processes that this test process started so far."""
    assert left_at_home() == []
