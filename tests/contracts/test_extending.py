"""The page on extending sharpaudit: what it shows, packed as it says, is found by its names and works."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from sharpaudit import plugs
from sharpaudit.config import ModelConfig
from sharpaudit.corpus.read import read_rows
from sharpaudit.corpus.rows import Source
from sharpaudit.denoisers.load import family_of, load_denoiser, load_tokenizer, model_digest
from sharpaudit.embedders.base import open_embedder
from sharpaudit.plugs import EMBEDDERS, FORMATS, KINDS

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
OFFERED = tomllib.loads("\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)))["project"]["entry-points"]


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """The page's modules and entry points as pip leaves them."""
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
    info = tmp_path / "example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in named.items()) for group, named in OFFERED.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(tmp_path)
    for kind in KINDS.values():
        monkeypatch.setattr(kind, "_loaded", dict(kind._loaded))
    plugs._offered.cache_clear()
    yield
    plugs._offered.cache_clear()
    for name in MODULES:
        sys.modules.pop(name, None)


def test_all_that_is_offered_is_found_and_nothing_is_imported_before():
    by_group = {kind.group: kind for kind in KINDS.values()}
    assert set(OFFERED) <= set(by_group)
    for group, named in OFFERED.items():
        for name, place in named.items():
            module = place.partition(":")[0]
            assert name in by_group[group]
            assert module not in sys.modules
            origin = by_group[group].origin(name)
            assert (origin.distribution, origin.version, bool(origin.digest)) == ("example", "1.0", True)
            assert module in sys.modules
    assert set(MODULES) == {place.partition(":")[0] for named in OFFERED.values() for place in named.values()}


def test_the_family_loads_a_model_that_names_it(tmp_path):
    (tmp_path / "model.json").write_text('{"kind": "mirrored", "seed": 3}')
    config = ModelConfig(path=str(tmp_path))
    denoiser = load_denoiser(config)
    assert (family_of(config), denoiser.digest) == ("mirrored", model_digest(config))
    assert load_tokenizer(config).tokens(["a cat"])[0].n_tokens == 2
    x0_hat = denoiser.predict(torch.zeros(1, 3, 8, 8), 981, denoiser.encode(["a cat"])).x0_hat
    assert torch.equal(denoiser.decode(x0_hat).flip(-1), super(type(denoiser), denoiser).decode(x0_hat))


def test_the_embedder_describes_pictures():
    rows = open_embedder(EMBEDDERS["mean-colour"]).describe([np.full((2, 2, 3), value, np.uint8) for value in (0, 9)])
    assert np.allclose(rows[0], [0, 0, 0, 1])
    assert rows[1, 0] > 0


def test_the_format_is_read(tmp_path):
    (tmp_path / "x.md-list").write_text("# Prompts\n- a red boat\n- a blue hat\n")
    assert [row.prompt for row in read_rows(Source("x", "audit", tmp_path / "x.md-list"))] == [
        b"a red boat",
        b"a blue hat",
    ]
    assert FORMATS[".md-list"].digest == "1"
