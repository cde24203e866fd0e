"""What stands in infra/ is checked as far as it can be without Docker and without a second machine."""

from __future__ import annotations

import copy
import json
import re
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sharpaudit import __version__
from tests.support.shells import bare

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "Dockerfile").read_text()
CLUSTER = (INFRA / "ray-cluster.yaml").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"cpu": "cpu", "cuda": "gpu"}
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "HOME": "/home/auditor"}


@dataclass
class Stage:
    """A stage of a Dockerfile with what it inherits: (keyword, rest) in order, above an image from outside."""

    image: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [rest for word, rest in self.lines if word == keyword]

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for rest in self.all("ENV") for pair in shlex.split(rest))


def stages(text: str) -> dict[str, Stage]:
    """The named stages of a Dockerfile."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    instructions = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    defaults: dict[str, str] = {}
    found: dict[str, Stage] = {}
    current = Stage("")
    for keyword, rest in instructions:
        if keyword == "FROM":
            image, _, name = rest.split()
            base = found.get(image)
            current = Stage(base.image, list(base.lines)) if base else Stage(filled(image, defaults))
            found[name] = current
        elif keyword == "ARG":
            name, value = rest.split("=", 1)
            defaults[name] = value
        else:
            current.lines.append((keyword, filled(rest, defaults)))
    return found


def filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)


def dockerfile_faults(text: str) -> list[str]:
    """What an image of this Dockerfile would lack."""
    found = stages(text)
    return [
        fault
        for target in EXTRAS
        for fault in (target_faults(target, found[target]) if target in found else [f"no target {target}"])
    ]


def target_faults(target: str, stage: Stage) -> list[str]:
    runs = " ; ".join(stage.all("RUN"))
    user = (stage.all("USER") or ["root"])[-1]
    python = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+", stage.image)
    ray = re.findall(r"ray\[default\]==([\w.]+)", runs)
    needed = next(Requirement(entry).specifier for entry in PROJECT["dependencies"] if entry.startswith("ray"))
    checks = {
        "ends as root": user.split(":")[0] not in ("root", "0") and user.split(":")[0].isdigit(),
        "installs other extras": re.findall(r"\.whl\)\[(\w+)\]", runs) == [EXTRAS[target]],
        "keeps a pip cache": runs.count("pip install") == runs.count("pip install --no-cache-dir"),
        "lacks an environment variable": stage.environment().items() >= ENVIRONMENT.items(),
        "has another entry point": stage.all("ENTRYPOINT") == ['["sharpaudit"]'],
        "has no fitting Python": python is not None and SpecifierSet(PROJECT["requires-python"]).contains(python[1]),
        "has no fitting Ray": len(ray) == 1 and needed.contains(ray[0]),
        "lacks rsync or ssh": "rsync" in runs and "openssh-client" in runs,
    }
    return [f"{target} {fault}" for fault, kept in checks.items() if not kept]


def cluster_faults(text: str) -> list[str]:
    """What a cluster of this file would do that it must not."""
    config = yaml.safe_load(text)
    docker, options = config["docker"], run_options(config)
    environment = dict(value.split("=", 1) for flag, value in options if flag == "-e")
    mounts = [value for flag, value in options if flag == "-v"]
    head, worker = (" ; ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    token = environment.get("RAY_AUTH_TOKEN_PATH", "nowhere")
    checks = {
        "asks for no token": environment.get("RAY_AUTH_MODE") == "token",
        "has no token file": any(mount.endswith(f":{token}:ro") for mount in mounts),
        "holds a token": "RAY_AUTH_TOKEN=" not in text,
        "opens the dashboard": re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"] and "0.0.0.0" not in text,
        "works on the head": "--num-cpus=0" in head.split() and "--num-gpus=0" in head.split(),
        "has two ports": re.findall(r"--port=(\d+)", head) == re.findall(r"--address=\$RAY_HEAD_IP:(\d+)", worker),
        "leaves the entry point": options[0][0] == "--entrypoint=",
        "names other images": [docker.get("head_image"), docker.get("worker_image")] == [image("cpu"), image("cuda")],
    }
    return [fault for fault, kept in checks.items() if not kept]


def run_options(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The options of `docker run`, as a shell cuts them, each with the one after it."""
    words = shlex.split(" ".join(config["docker"]["run_options"]))
    return list(pairwise([*words, ""]))


def image(target: str) -> str:
    return f"sharpaudit:{__version__}-{target}"


def ray_accepts(config: dict[str, Any]) -> None:
    """Raises what Ray's launcher would; the functions are not public, but nothing public reads the file offline."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_dockerfile_is_sound():
    assert dockerfile_faults(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("FROM base AS cuda", "FROM base AS gpu", "no target cuda"),
        ("USER 10001:10001\n", "", "cpu ends as root"),
        ("USER 10001:10001", "USER 0:0", "cuda ends as root"),
        ("USER 10001:10001", "USER auditor", "cpu ends as root"),
        (".whl)[gpu]", ".whl)[cpu]", "cuda installs other extras"),
        (".whl)[cpu]", ".whl)[cpu,gpu]", "cpu installs other extras"),
        ("pip install --no-cache-dir", "pip install", "cpu keeps a pip cache"),
        ("HF_HUB_OFFLINE=1", "HF_HUB_OFFLINE=0", "cpu lacks an environment variable"),
        ('ENTRYPOINT ["sharpaudit"]', "ENTRYPOINT sharpaudit", "cuda has another entry point"),
        ("PYTHON_TAG=3.11.14-slim-bookworm", "PYTHON_TAG=latest", "cpu has no fitting Python"),
        ("PYTHON_TAG=3.11.14", "PYTHON_TAG=3.10.14", "cpu has no fitting Python"),
        ("RAY_VERSION=2.60.0", "RAY_VERSION=2.51.0", "cuda has no fitting Ray"),
        (" rsync ", " ", "cpu lacks rsync or ssh"),
    ],
)
def test_dockerfile_faults_are_seen(old, new, fault):
    assert old in DOCKERFILE
    assert fault in dockerfile_faults(DOCKERFILE.replace(old, new))


def test_build_context_is_what_the_dockerfile_copies():
    copied = [source for rest in stages(DOCKERFILE)["wheel"].all("COPY") for source in rest.split()[:-1]]
    allowed = re.findall(r"^!(.+)$", (INFRA / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert copied == allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_cluster_is_closed():
    assert cluster_faults(CLUSTER) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("-e RAY_AUTH_MODE=token", "-e RAY_AUTH_MODE=disabled", "asks for no token"),
        ("ray_token:ro", "ray_token", "has no token file"),
        ("-e RAY_AUTH_TOKEN_PATH=/run/secrets/ray_token", "-e RAY_AUTH_TOKEN=abc", "holds a token"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "opens the dashboard"),
        (" --num-cpus=0", "", "works on the head"),
        ("RAY_HEAD_IP:6379", "RAY_HEAD_IP:6380", "has two ports"),
        ("--entrypoint=''", "--init", "leaves the entry point"),
        (image("cuda"), "sharpaudit:latest", "names other images"),
    ],
)
def test_cluster_faults_are_seen(old, new, fault):
    assert old in CLUSTER
    assert fault in cluster_faults(CLUSTER.replace(old, new))


def test_ray_accepts_the_cluster_file():
    ray_accepts(yaml.safe_load(CLUSTER))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (None, "docker"),
        (None, "head_start_ray_commands"),
        ("docker", "run_options"),
        ("docker", "container_name"),
        ("auth", "ssh_private_key"),
        ("provider", "worker_ips"),
    ],
)
def test_ray_refuses_a_renamed_key(section, key):
    config = yaml.safe_load(CLUSTER)
    part = config[section] if section else config
    part[f"{key}_"] = part.pop(key)
    with pytest.raises(Exception, match=f"{key}_' was unexpected|Must provide a container|Please supply"):
        ray_accepts(config)


def test_readme_names_these_images_and_targets():
    readme = (INFRA / "README.md").read_text()
    assert set(re.findall(r"sharpaudit:[\w.-]+", readme + DOCKERFILE)) == {image("cpu"), image("cuda")}
    assert set(re.findall(r"--target (\w+)", readme)) == set(EXTRAS)


@pytest.fixture
def head(tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    """The cluster file's head on this machine, by its own command and environment: its address and environment."""
    config = yaml.safe_load(CLUSTER)
    # Short: the names of Ray's sockets in it may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="r"))
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    inside = dict(value.split("=", 1) for flag, value in run_options(config) if flag == "-e")
    environment = bare(inside | {"RAY_AUTH_TOKEN_PATH": str(token)}, home=folder)
    port = free_port()
    command = config["head_start_ray_commands"][-1].split(";")[-1]
    command = re.sub(r"--autoscaling-config=\S+", f"--block --temp-dir={folder}/ray", command)
    command = re.sub(r"--port=\d+", f"--port={port} --object-store-memory=100000000", command)
    program = [sys.executable, "-m", "ray.scripts.scripts", *shlex.split(command)[1:]]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(program, env=environment, stdout=log, stderr=log)
    try:
        wait_for(folder / "log", "Ray runtime started", process)
        yield re.search(r"--address='(\S+)'", (folder / "log").read_text())[1], environment
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)


def free_port() -> int:
    """A port below those that Ray gives to its workers."""
    for port in range(6400, 10000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")


def wait_for(log: Path, sign: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 600
    while sign not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def joined(address: str, environment: dict[str, str]) -> dict[str, float] | None:
    """The resources that a client of that environment sees, or None when it is refused."""
    program = (
        "import json, ray, sys\n"
        f"try: ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False)\n"
        "except (ConnectionError, ray.exceptions.RayError): sys.exit(9)\n"
        "print(json.dumps(ray.cluster_resources()))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 9), done.stderr
    return json.loads(done.stdout) if done.returncode == 0 else None


@pytest.mark.chaos
def test_a_cluster_refuses_whoever_has_no_token(head):
    address, environment = head
    outsider = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")}
    wrong = outsider | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    resources = joined(address, environment)
    assert resources is not None
    assert "CPU" not in resources  # the head takes no work
    assert joined(address, outsider) is None
    assert joined(address, wrong) is None
