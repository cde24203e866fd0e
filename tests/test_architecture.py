"""The house rules that a reader of one file cannot see: import order, one door per dangerous library, no data as code.

Each rule is a function over source text that returns what breaks it; the rules are tried on bad examples
first and on the whole repository afterwards.
"""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpaudit.plugs import KINDS, STAGES
from tests.support.shells import bare

ROOT = Path(__file__).parents[1]
MAX_LINES = 400

ORDER = [
    {"errors"},
    {"encoding", "origin", "plugs"},
    {"batching", "config", "devices", "images", "seeds"},
    {"statistics", "tables"},
    {"denoisers", "embedders"},
    {"corpus", "scores", "triage", "samples", "matches", "mitigation", "spectra"},
    {"report", "evidence", "analysis"},
    {"lab"},
    {"pipelines"},
    {"pipelines.stages"},
    {"pipelines.workers"},
    {"pipelines.flow"},
    {"pipelines.indexing"},
    {"pipelines.audit"},
    {"pipelines.operations"},
    {"pipelines.bench"},
    {"pipelines.research"},
    {"pipelines.commands"},
    {"pipelines.cli"},
]
FRONT_DOORS = (
    ("sharpaudit/__init__.py", "sharpaudit.analysis.Run"),
    ("sharpaudit/__main__.py", "sharpaudit.errors.UserError"),
    ("sharpaudit/__main__.py", "sharpaudit.origin.require_ours"),
    ("sharpaudit/__main__.py", "pipelines.cli.main"),
    ("sharpaudit/origin.py", "pipelines"),
    ("sharpaudit/plugs.py", "pipelines.stages.base.Stage"),
    ("sharpaudit/plugs.py", "sharpaudit.denoisers.sampling.Solver"),
    ("sharpaudit/plugs.py", "sharpaudit.scores.base.Metric"),
    ("sharpaudit/plugs.py", "sharpaudit.denoisers.families.base.Family"),
    ("sharpaudit/plugs.py", "sharpaudit.embedders.base.Embedder"),
    ("sharpaudit/plugs.py", "sharpaudit.corpus.formats.base.Format"),
    ("sharpaudit/plugs.py", "sharpaudit.mitigation.base.Mitigation"),
)
"""What the package offers under its own name, imported by the call, so that nothing that reads the version loads it;
and the way to the command line, which begins in the package because only it can tell which `pipelines` is its own; and
what the registry of plugs holds, named for the type checker alone."""
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms} | {"": -1}

DOORS = {
    "ray": ("pipelines/workers/cluster.py", "pipelines/workers/ray.py", "pipelines/workers/pool.py"),
    "duckdb": ("sharpaudit/tables/query.py", "sharpaudit/corpus/scratch.py"),
    "rensa": ("sharpaudit/corpus/near.py",),
    "faiss": ("sharpaudit/matches/search/",),
    "onnxruntime": ("sharpaudit/embedders/sscd.py",),
    "open_clip": ("sharpaudit/embedders/open_clip.py", "pipelines/research/lab/clip.py"),
    "torchvision": ("sharpaudit/embedders/",),
    "PIL": ("sharpaudit/images.py", "pipelines/research/lab/"),
    "tokenizers": ("pipelines/research/lab/tokenizer.py",),
    "diffusers": (
        "sharpaudit/denoisers/families/stable_diffusion/",
        "sharpaudit/lab/random_unet.py",
        "pipelines/research/lab/",
    ),
    "transformers": ("sharpaudit/denoisers/families/stable_diffusion/", "pipelines/research/lab/"),
}

CODE_AS_DATA = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"torch.load", "torch.jit.load", "yaml.load", "eval", "exec"}
WEIGHTS_DOOR = "sharpaudit/embedders/sscd.py"
"""Where published weights come in that are in no safe format: the digest of each is vouched for before."""
KEYWORDS = {"allow_pickle", "trust_remote_code", "custom_pipeline"}


def module_of(path: str) -> str:
    """`sharpaudit/tables/__init__.py` is `sharpaudit.tables`."""
    return ".".join(part for part in Path(path).with_suffix("").parts if part != "__init__")


def room_of(module: str) -> str:
    """The name that stands in the order; the package itself, with its version, is the empty one."""
    package, _, rest = module.partition(".")
    name = rest.split(".")[0]
    if package == "pipelines":
        return f"{package}.{name}" if name else package
    return "" if name.startswith("__") else name


def imported(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, at its top or inside a function."""
    package = module_of(path).split(".")
    if not path.endswith("__init__.py"):
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from ((node.lineno, arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def order_faults(path: str, source: str) -> list[str]:
    """Imports within the project that do not run from right to left in the order."""
    room = room_of(module_of(path))
    if room not in LEVEL:
        return [f"{path}: {room} has no place in the import order"]
    faults = []
    for line, name in imported(path, ast.parse(source)):
        if name.split(".")[0] not in ("sharpaudit", "pipelines"):
            continue
        target = room_of(name)
        if (path, name) in FRONT_DOORS:
            continue
        if target != room and LEVEL.get(target, len(ORDER)) >= LEVEL[room]:
            faults.append(f"{path}:{line}: {room or 'sharpaudit'} imports {name}")
    return faults


def door_faults(path: str, source: str) -> list[str]:
    """Imports of a dangerous library elsewhere than at its door."""
    return [
        f"{path}:{line}: {name} is imported in {' and '.join(doors)} only"
        for line, name in imported(path, ast.parse(source))
        for library, doors in DOORS.items()
        if name.split(".")[0] == library and not path.startswith(doors)
    ]


def data_as_code_faults(path: str, source: str) -> list[str]:
    """Places where bytes from outside could run: pickles, evaluated text, remote code."""
    tree = ast.parse(source)
    faults = [f"{path}:{n}: imports {name}" for n, name in imported(path, tree) if name.split(".")[0] in CODE_AS_DATA]
    meaning = bound_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = ast.unparse(node.func).partition(".")
        called = meaning.get(first, first) + dot + rest
        safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("weights_only") == "True"
        at_door = path == WEIGHTS_DOOR and (called == "torch.jit.load" or (called == "torch.load" and safe))
        if called in CALLS and not at_door:
            faults.append(f"{path}:{node.lineno}: calls {called}")
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value):
                faults.append(f"{path}:{node.lineno}: passes {keyword.arg}")
    return faults


def encoding_faults(path: str, source: str) -> list[str]:
    """Text that is read or written in whatever encoding the user's locale has."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        arguments = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [a.value for a in arguments if isinstance(a, ast.Constant) and re.fullmatch("[rwxab+t]+", str(a.value))]
        opens = called == "open" and (not any("b" in mode for mode in modes) if modes else not node.args)
        asks = {keyword.arg for keyword in node.keywords if ast.unparse(keyword) == "text=True"}
        if called in ("read_text", "write_text") or opens or asks:
            faults.append(f"{path}:{node.lineno}: {called} without an encoding")
    return faults


def bound_names(tree: ast.AST) -> dict[str, str]:
    """What each imported name of a file stands for: `t` is `torch` after `import torch as t`."""
    meaning = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            meaning |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            meaning |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return meaning


def length_faults(path: str, source: str) -> list[str]:
    """A file that nobody reads to its end."""
    n_lines = source.count("\n")
    return [f"{path}: {n_lines} lines, {MAX_LINES} are allowed"] if n_lines > MAX_LINES else []


BAD = [
    (order_faults, "sharpaudit/errors.py", "from sharpaudit import config"),
    (order_faults, "sharpaudit/config/base.py", "from sharpaudit.images import decode"),
    (order_faults, "sharpaudit/tables/runs.py", "import sharpaudit.statistics.fdr"),
    (order_faults, "sharpaudit/scores/plan.py", "def f():\n    from sharpaudit.triage.decide import decide"),
    (order_faults, "sharpaudit/scores/plan.py", "from ..triage import decide"),
    (order_faults, "sharpaudit/scores/__init__.py", "from .. import triage"),
    (order_faults, "sharpaudit/matches/decide.py", "from sharpaudit.report import facts"),
    (order_faults, "sharpaudit/lab/comparison.py", "from pipelines.stages.base import Stage"),
    (order_faults, "sharpaudit/lab/comparison.py", "import pipelines"),
    (order_faults, "sharpaudit/tables/runs.py", "import importlib\nimportlib.import_module('sharpaudit.lab')"),
    (order_faults, "sharpaudit/__init__.py", "from sharpaudit.errors import UserError"),
    (order_faults, "sharpaudit/utils.py", "import math"),
    (order_faults, "sharpaudit/tables/runs.py", "from sharpaudit import utils"),
    (door_faults, "pipelines/audit.py", "import ray"),
    (door_faults, "sharpaudit/tables/shards.py", "def f():\n    from ray.util import state"),
    (door_faults, "sharpaudit/report/facts.py", "import duckdb"),
    (door_faults, "sharpaudit/matches/decide.py", "import importlib\nimportlib.import_module('faiss')"),
    (door_faults, "sharpaudit/report/html.py", "from PIL import Image"),
    (door_faults, "sharpaudit/denoisers/cards.py", "from diffusers import UNet2DConditionModel"),
    (door_faults, "sharpaudit/embedders/sscd.py", "import transformers"),
    (data_as_code_faults, "a.py", "import pickle"),
    (data_as_code_faults, "a.py", "from pickle import loads"),
    (data_as_code_faults, "a.py", "import torch\ntorch.load(p, weights_only=True)"),
    (data_as_code_faults, WEIGHTS_DOOR, "import torch\ntorch.load(p)"),
    (data_as_code_faults, WEIGHTS_DOOR, "import torch\ntorch.load(p, weights_only=False)"),
    (data_as_code_faults, "a.py", "import torch as t\nt.load(p)"),
    (data_as_code_faults, "a.py", "from torch import load as read\nread(p)"),
    (data_as_code_faults, "a.py", "import numpy\nnumpy.load(p, allow_pickle=True)"),
    (data_as_code_faults, "a.py", "Model.from_pretrained(p, trust_remote_code=flag)"),
    (data_as_code_faults, "a.py", "Pipeline.from_pretrained(p, custom_pipeline='x')"),
    (data_as_code_faults, "a.py", "eval(text)"),
    (encoding_faults, "a.py", "path.read_text()"),
    (encoding_faults, "a.py", "path.write_text(text, errors='replace')"),
    (encoding_faults, "a.py", "path.open()"),
    (encoding_faults, "a.py", "open(path, 'w')"),
    (encoding_faults, "a.py", "path.open(mode='a')"),
    (encoding_faults, "a.py", "subprocess.run(call, text=True)"),
    (length_faults, "a.py", "x\n" * (MAX_LINES + 1)),
]

GOOD = [
    (
        order_faults,
        "sharpaudit/scores/plan.py",
        "from sharpaudit.scores.base import Metric\nfrom sharpaudit import errors",
    ),
    (order_faults, "sharpaudit/scores/plan.py", "from .base import Metric\nfrom ..denoisers import base"),
    (order_faults, "pipelines/audit.py", "from sharpaudit import __version__\nfrom sharpaudit.lab import data"),
    (order_faults, "sharpaudit/__init__.py", "def f():\n    from sharpaudit.analysis import Run"),
    (door_faults, "pipelines/workers/ray.py", "import ray.exceptions"),
    (door_faults, "sharpaudit/matches/search/flat.py", "import faiss"),
    (data_as_code_faults, "a.py", "from safetensors.torch import load\nload(p)\nmodel.eval()"),
    (data_as_code_faults, "a.py", "numpy.load(p, allow_pickle=False)\nre.compile(p)"),
    (encoding_faults, "a.py", "path.read_text(encoding='utf-8')"),
    (encoding_faults, "a.py", "path.open('rb')\nopen(path, 'wb')\nRunFolder.open(path)"),
    (encoding_faults, "a.py", "open(path, 'a', encoding='utf-8')\nsubprocess.run(call, encoding='utf-8')"),
    (length_faults, "a.py", "x\n" * MAX_LINES),
]


@pytest.mark.parametrize(("rule", "path", "source"), BAD)
def test_rule_sees_a_breach(rule, path, source):
    assert rule(path, source)


@pytest.mark.parametrize(("rule", "path", "source"), GOOD)
def test_rule_lets_good_code_pass(rule, path, source):
    assert rule(path, source) == []


def sources(*folders: str) -> dict[str, str]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in found}


@pytest.mark.parametrize("rule", [order_faults, door_faults, data_as_code_faults, encoding_faults, length_faults])
def test_repository_keeps(rule):
    texts = sources("sharpaudit", "pipelines")
    assert len(texts) > 10
    assert [fault for path, source in texts.items() for fault in rule(path, source)] == []


def test_tests_are_short_too():
    assert [fault for path, source in sources("tests").items() for fault in length_faults(path, source)] == []


def test_every_package_is_shipped():
    """setuptools leaves out a package that is not listed, and says nothing; of ours only research is to be left out."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {module_of(str(Path(path).parent / "__init__.py")) for path in sources("sharpaudit", "pipelines")}
    here = {package for package in on_disk if package.split(".")[:2] == ["pipelines", "research"]}
    assert len(here) == 4  # itself, geometry, lab and its artwork
    assert set(listed["packages"]) - set(listed["package-dir"]) == on_disk - here


def test_library_imports_without_ray():
    modules = [module_of(path) for path in sources("sharpaudit")]
    program = f"import sys, importlib\nsys.modules['ray'] = None\nfor m in {modules}: importlib.import_module(m)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=bare(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reach", [("203.0.113.1", 80), ("example.org", 80), ("2001:db8::1", 80)])
def test_tests_reach_no_network(reach):
    with pytest.raises(RuntimeError, match="tests reach no network"):
        socket.create_connection(reach, timeout=0.1)


def test_tests_reach_this_machine():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()[:2], timeout=5),
    ):
        pass


PAGE = ROOT / "docs/architecture.md"


def column(heading: str) -> list[list[str]]:
    """Of the page's table with this heading, what stands in code in the first cell of each row."""
    rows = PAGE.read_text(encoding="utf-8").split(f"| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) or [row.split("|")[1].strip()] for row in rows]


def test_the_page_names_every_room_in_the_order_of_imports() -> None:
    library = [set(names) for names in column("room of `sharpaudit/`")]
    pipelines = [{f"pipelines.{name}" for name in names} for names in column("room of `pipelines/`")]
    # A room to come has its place in the order already.
    there = {path.stem for path in (ROOT / "sharpaudit").iterdir()}
    order = [rooms & there for rooms in ORDER if not any(room.startswith("pipelines") for room in rooms)]
    assert library == order
    assert [room for rooms in pipelines for room in sorted(rooms, reverse=True)] == [
        room for rooms in ORDER for room in rooms if room.startswith("pipelines.")
    ]
    folders = {path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").exists()}
    assert folders <= {name.removeprefix("pipelines.") for rooms in pipelines for name in rooms}


def test_the_page_names_every_kind_of_plug_with_its_group() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for (name,) in column("kind")] == list(KINDS)
    for kind in KINDS.values():
        assert f"| {kind.kind} | `{kind.group}` |" in text


def test_the_page_draws_the_flow_as_it_is() -> None:
    drawn = PAGE.read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    between = " ".join(drawn.split()).split("ingest -> ")[1].split(" -> [")[0]
    assert between.split(" -> ") == STAGES.ours()


def test_files_that_the_page_names_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py|[\w]+/[\w/]*)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 15
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT / "sharpaudit" / name).exists())] == []
