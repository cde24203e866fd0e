"""A model's own index file names its family, ours or another package's; nobody else asks which it is."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers import load
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser, GaussianSpec
from sharpaudit.denoisers.load import (
    beside_model,
    family_of,
    load_denoiser,
    load_tokenizer,
    model_digest,
    model_files,
    placement,
)
from sharpaudit.errors import UserError
from sharpaudit.plugs import FAMILIES
from tests.support.models import model_at
from tests.support.toys import FAMILY, MirroredDenoiser, MirroredFamily

ROOT = Path(__file__).parents[3]
OF_ONE_FAMILY = re.compile(
    r"sharpaudit\.denoisers\.(families\.(?!base)|diffusion|gaussian|snapshot|loading|vocabulary)"
)


@pytest.fixture
def added_family(monkeypatch):
    monkeypatch.setattr(load, "_held", {})
    FAMILIES.add(FAMILY)
    yield
    FAMILIES.remove(FAMILY.name)


@pytest.mark.parametrize(
    ("name", "key", "called", "hint"),
    [
        ("model_index.json", "_class_name", "FluxPipeline", ""),
        ("model_index.json", "_class_name", "StableDiffusionXLPipeline", '(did you mean "StableDiffusionPipeline"?)'),
        ("model_index.json", "_class_name", ["pipeline", "Evil"], ""),
        ("model_index.json", "_class_name", None, ""),
        ("model.json", "kind", "gausian", '(did you mean "gaussian"?)'),
        ("model.json", "kind", 3, ""),
    ],
)
def test_an_unknown_family_is_one_line_with_those_that_are_known(tmp_path, name, key, called, hint):
    (tmp_path / name).write_text(json.dumps({key: called}))
    said = f"{name}: {key} = {json.dumps(called)}: no such family of models {hint}".rstrip()
    said += "; only StableDiffusionPipeline, gaussian are audited"
    for use in (model_digest, load_tokenizer, load_denoiser, family_of):
        with pytest.raises(UserError, match=re.escape(said)) as caught:
            use(model_at(tmp_path))
        assert "\n" not in str(caught.value)


def test_a_family_of_another_package_is_one_declaration(tmp_path, added_family):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"kind": "mirrored", "seed": 3}))
    config = model_at(path)
    assert family_of(config) == "mirrored"
    assert FAMILIES.origin("mirrored").digest == "1"
    denoiser, plain = load_denoiser(config), GaussianDenoiser(GaussianSpec(kind="gaussian", seed=3))
    assert denoiser.digest == model_digest(config) != plain.digest
    assert model_files(config) == ["model.json"]
    assert beside_model(config) == ([], [])
    assert load_tokenizer(config).tokens(["a cat"])[0].n_tokens == 2
    assert placement(config) == (torch.device("cpu"), torch.float32)
    x, t = torch.zeros(1, *denoiser.latent_shape), denoiser.first_timestep()
    x0_hat = denoiser.predict(x, t, denoiser.encode(["a cat"])).x0_hat
    assert torch.equal(x0_hat, plain.predict(x, t, plain.encode(["a cat"])).x0_hat)
    assert torch.equal(denoiser.decode(x0_hat), plain.decode(x0_hat).flip(-1))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_analytic_model_has_one_place_and_precision(tmp_path, device, dtype):
    (tmp_path / "model.json").write_text('{"kind": "gaussian"}')
    assert placement(model_at(tmp_path, device=device, dtype=dtype)) == (torch.device("cpu"), torch.float32)


def test_a_denoiser_that_is_not_of_its_content_is_refused(tmp_path, added_family, monkeypatch):
    (tmp_path / "model.json").write_text('{"kind": "mirrored"}')
    monkeypatch.setattr(MirroredFamily, "content", lambda self, index: "another")
    monkeypatch.setattr(MirroredDenoiser, "__setattr__", lambda *named: object.__setattr__(*named[:2], "one"))
    with pytest.raises(UserError, match="model family mirrored: its denoiser has the digest one, its content another"):
        load_denoiser(model_at(tmp_path))


def test_a_family_that_no_hub_has_says_so(tmp_path, added_family, monkeypatch):
    (tmp_path / "model.json").write_text('{"kind": "mirrored"}')
    monkeypatch.setattr(load, "fetched", lambda repo, revision, patterns: tmp_path)
    with pytest.raises(UserError, match=r"model\.repo: models of the family mirrored are read from a folder"):
        model_digest(ModelConfig(repo="owner/name", revision="0" * 40))


def test_nothing_else_knows_a_family_from_another():
    """The lab makes models of both; whoever audits one goes through load.py."""
    found = [path for room in ("sharpaudit", "pipelines") for path in (ROOT / room).rglob("*.py")]
    named = {
        path.relative_to(ROOT).as_posix()
        for path in found
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import) and OF_ONE_FAMILY.search(_dotted(node))
    }
    assert {name for name in named if not name.startswith(("sharpaudit/denoisers/", "sharpaudit/lab/"))} == set()
    inside = {f"sharpaudit/denoisers/{name}.py" for name in ("load", "base", "hub", "beside", "files", "families/base")}
    assert named & inside == set()


def _dotted(node):
    names = [alias.name for alias in node.names]
    return " ".join(f"{node.module}.{name}" for name in names) if isinstance(node, ast.ImportFrom) else " ".join(names)
