"""Throughput and cascade benches: the baseline computes what ours does, figures are those of what was timed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.bench import cascade, exactness, throughput
from pipelines.bench.cascade import Evaluated, compare
from pipelines.bench.lines import unmet
from pipelines.bench.networks import bare
from pipelines.bench.practice import Practice, bare_loop, jeon, practised, wen
from pipelines.bench.ratios import PARTS, RATIOS, Throughput, markdown, needed
from pipelines.bench.throughput import Bench, bench_of, measure
from pipelines.bench.timing import Contender, Timed, ratio, timed
from pipelines.cli import cli
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import Conditioning
from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser, DiffusionTokenizer
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.devices import cpu_has_bf16
from sharpaudit.errors import UserError
from sharpaudit.lab.detectors import TOUCHES, Truth
from sharpaudit.lab.random_unet import RandomUNet
from sharpaudit.plugs import METRICS
from sharpaudit.scores.screen import ScreenConfig, unconditional_predictions
from sharpaudit.seeds import screen_latent
from sharpaudit.statistics.intervals import upper_bound
from tests.support.tiny_models import write_model

SMALL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab folder around a tiny diffusion model, with labels that mean nothing."""
    folder = tmp_path_factory.mktemp("speed") / "lab"
    write_model(folder / "model")
    rows = [[f"harmless cat {50 + i}", "fit", f"f{i}", "seen", "harmless"] for i in range(30)]
    rows += [[f"harmless cat {i}", "test", f"h{i}", "unseen", "harmless"] for i in range(38)]
    rows += [[f"planted cat {i}", "test", f"p{i}", "exact", "memorised"] for i in range(4)]
    with (folder / "truth.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["prompt", "split", "family", "kind", "label"], *rows])
    return folder


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    denoiser = load_denoiser(ModelConfig(path=str(folder / "model"), dtype="float32", device="cpu"))
    return bench_of(denoiser, [f"a cat {i}" for i in range(3)], [f"fit {i}" for i in range(20)])


@pytest.mark.parametrize(("practice", "metric"), [(wen, "noise_gap"), (jeon, "sharpness_jvp")])
def test_the_practice_computes_the_metric_that_ours_does(bench: Bench, practice: Practice, metric: str) -> None:
    theirs = practised("", practice, bench.denoiser, bench.prompts, 4).run()
    assert bench.screened(METRICS.of([metric]), 3, 4) == pytest.approx(theirs, rel=1e-3)
    assert bench.screened(METRICS.of([metric]), 3, 4, batch=1) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("practice", [wen, jeon])
def test_a_bare_loop_makes_the_calls_that_its_practice_makes(folder: Path, bench: Bench, practice: Practice) -> None:
    denoiser, calls = bench.denoiser, list[tuple[str, int]]()
    assert isinstance(denoiser, DiffusionDenoiser)
    hooks = [
        denoiser.unet.register_forward_pre_hook(lambda _, args: calls.append(("unet", len(args[0])))),
        denoiser.text_encoder.register_forward_pre_hook(lambda _, args: calls.append(("text", len(args[0])))),
    ]
    try:
        practised("", practice, denoiser, bench.prompts[:2], 4).run()
        made = calls.copy()
        calls.clear()
        row = bare_loop("", practice, denoiser, DiffusionTokenizer(folder / "model"), bench.prompts[:2], 4)
        assert calls == []
        row.run()
    finally:
        for hook in hooks:
            hook.remove()
    product = [("unet", 8)] if practice is jeon else []
    assert calls == made == [("text", 1), ("text", 1), ("unet", 8), *product] * 2


@pytest.mark.chaos
def test_a_bigger_network_is_behind_the_same_contract() -> None:
    denoiser = RandomUNet(torch.device("cpu"), **SMALL)
    known = unconditional_predictions(denoiser, ScreenConfig(1, 0, 1.0, 2))
    bench = Bench(denoiser, known, {}, ["one", "two"])
    with torch.no_grad():
        x_KCHW = screen_latent(0, 0, denoiser.latent_shape)[None]
        theirs = [jeon(denoiser, prompt, x_KCHW) for prompt in bench.prompts]
    assert bench.screened(METRICS.of(["sharpness_jvp"]), 2, 1, 2) == pytest.approx(theirs, rel=1e-3)
    assert theirs[0] != theirs[1]


def test_the_larger_network_has_the_size_of_stable_diffusion_1() -> None:
    with torch.device("meta"):
        denoiser = RandomUNet(torch.device("meta"))
    assert sum(weight.numel() for weight in denoiser._unet.parameters()) == 859_520_964


def test_the_floor_is_the_forwards_that_ours_makes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = bench.denoiser
    assert isinstance(denoiser, DiffusionDenoiser)
    network, shapes = denoiser.network, []

    def counted(x_BCHW: torch.Tensor, t: int, conditioning: Conditioning) -> torch.Tensor:
        shapes.append((len(x_BCHW), t, len(conditioning)))
        return network(x_BCHW, t, conditioning)

    monkeypatch.setattr(denoiser, "network", counted)
    bench.row("fd", "", "sharpness", 3, 1, 3).run()
    ours = shapes.copy()
    shapes.clear()
    floor = bare(denoiser, bench.prompts, 3)
    floor.run()
    assert shapes == ours
    assert sum(size for size, *_ in shapes) == 3 * floor.nfe == 9
    shapes.clear()
    bench.row("screen", "", "residual_gap", 3, 1, 3).run()
    ours = shapes.copy()
    shapes.clear()
    bare(denoiser, bench.prompts, 3, (1,)).run()
    assert shapes == ours


def test_rows_take_turns_and_the_first_call_does_not_count() -> None:
    calls, told = list[str](), list[str]()
    rows = [Contender(name, "", 3, 1, lambda name=name: calls.append(name)) for name in ("a", "b")]
    found = timed(rows, rounds=2, tell=told.append)
    assert calls == ["a", "b"] * 3
    assert len(found["a"].rates) == len(found["b"].rates) == 2
    assert [line.split(",")[0] for line in told] == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert told[-1].endswith("s left")
    found["a"].rates[:], found["b"].rates[:] = [10.0, 30.0, 8.0], [5.0, 10.0, 8.0]
    line = ratio("speed.a", found["a"], found["b"], 2.5)
    assert (line.value, line.low, line.high, line.n, line.met) == (2.0, 1.0, 3.0, 3, False)
    calls.clear()
    assert len(timed(rows, rounds=2, warm=False)["b"].rates) == 2
    assert calls == ["a", "b"] * 2


def rated(rates: dict[str, float]) -> dict[str, Timed]:
    return {name: Timed(Contender(name, f"row {name}", 1, 1, object), [rate]) for name, rate in rates.items()}


def test_each_ratio_is_of_the_two_rows_that_its_name_says() -> None:
    """Every row has a rate of its own, so that a ratio of any two others is another number."""
    names = dict.fromkeys([name for columns in PARTS.values() for held in columns.values() for name in held])
    rates = {name: 2.0 ** (i * i) for i, name in enumerate(names) if not name.endswith(".bf16")}
    assert {name for pair in RATIOS.values() for name in pair[:2]} == set(rates) - {"fd_single", "screen_single"}
    found = Throughput(rated(rates), rated({"forward": 1.0, "text": 9.0}), rated({"jeon": 2.0, "fd": 6.0}))
    lines = {line.name: line for line in found.lines()}
    promised = {
        "speed.fd_vs_jeon": ("fd", "jeon", 5),
        "speed.gap_vs_wen4": ("gap4", "wen4", 2.5),
        "speed.screen_vs_wen4": ("screen", "wen4", 8),
        "speed.screen_vs_jeon": ("screen", "jeon", 50),
        "speed.cascade_vs_jeon": ("cascade", "jeon", 30),
        "speed.floor_share": ("loop", "floor", 0.9),
        "speed.baseline_vs_bare": ("jeon", "jeon_bare", 0.9),
    }
    for name, (ours, other, goal) in promised.items():
        assert (lines[name].value, lines[name].goal) == (rates[ours] / rates[other], goal)
    assert set(needed()) == set(promised) == {line.name for line in lines.values() if line.goal is not None}
    assert lines["speed.gap_vs_wen1"].value == rates["gap1"] / rates["wen1"]
    assert (lines["speed.sd1_fd"].value, lines["speed.sd1_fd"].goal, lines["speed.text"].value) == (3.0, None, 9.0)
    assert lines["speed.rate.sd1_fd"].value == 6.0
    assert lines["speed.rate.wen4"].value == rates["wen4"]
    assert not [name for name in lines if "bf16" in name]
    page = markdown(found)
    assert "bfloat16" not in page
    assert all(f"row {name} |" in page for name in rates)
    both = rates | {name: 3.0 for name in names if name.endswith(".bf16")}
    half = Throughput(rated(both), found.forms, {})
    assert {line.name: line.value for line in half.lines()}["speed.gap_vs_wen4.bf16"] == 1.0
    assert "In bfloat16, the practice as well" in markdown(half)
    assert "Stable Diffusion 1" not in markdown(half)


@pytest.mark.chaos
def test_everything_that_has_a_goal_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "CORPUS", 20)
    told = list[str]()
    found = measure(folder, sd1=False, rounds=1, tell=told.append)
    lines = list(found.lines())
    assert not [sentence for sentence in unmet(lines, needed()) if "was not measured" in sentence]
    page = markdown(found)
    assert all(timing.row.what in page for rows in (found.rows, found.forms) for timing in rows.values())
    assert ("In bfloat16" in page) == cpu_has_bf16()
    assert list(found.forms) == ["forward", "forward_contiguous", "text_single", "text"]
    assert any(line.startswith("the lab's model, round 2 of 2") for line in told)
    # The floor counts as many forwards a prompt as the stage beside it evaluates.
    assert found.rows["floor"].row.nfe == found.rows["loop"].row.nfe == 3


def test_a_cascade_is_compared_with_its_last_tier() -> None:
    """100 harmless prompts and 4 memorised ones: two pass the gate, one that the last tier would find does not."""
    truth = [Truth(f"m{i}", "test", f"m{i}", "exact", "memorised") for i in range(4)]
    truth += [Truth(f"h{i}", "test", f"h{i}", "unseen", "harmless") for i in range(100)]
    first = np.array([[50.0, 60.0, 10.0, 5.0, *np.arange(100.0)]])
    last = np.array([[200.0, 201.0, 202.0, 0.0, *np.arange(100.0)]])
    fit = np.linspace(0, 100, 101)[None]
    found = cascade.result(truth, Evaluated(*(np.repeat(rows, 2, axis=0) for rows in (first, last, fit))), (1, 4), 0.4)
    # Of the harmless those from 40 on pass, at 4 evaluations each.
    assert found.cost == 1 + 0.6 * 4
    assert (found.tpr, found.tpr_everything) == (0.5, 0.75)
    assert found.lost == ["m2"]
    assert found.low <= -0.25 <= found.high
    lines = {line.name: line for line in cascade.bench_lines([found])}
    assert lines["cascade.above_40.evaluations"].value == found.cost
    assert "lost at 0.4: m2" in cascade.markdown([found])


def test_a_cascade_has_a_goal_where_it_can_be_shown() -> None:
    def missed(n: int, low: float) -> bool:
        made = cascade.Result(cascade.DEFAULT, 0.9, 0.9, low, -low, 1.6, 4, [], n, 500)
        return bool(unmet(list(cascade.bench_lines([made])), []))

    least = [n for n in range(1, 200) if upper_bound(0, n, 0.975) < -cascade.WORST_LOSS]
    assert least[0] == cascade.FEWEST
    assert [missed(17, -0.2), missed(cascade.FEWEST, -0.06), missed(106, -0.04)] == [False, True, False]


def test_both_tiers_are_evaluated_as_an_audit_does(folder: Path) -> None:
    (found,) = compare(folder, "test")
    assert (found.n_memorised, found.n_harmless) == (4, 38)
    assert 1 < found.cost < 1 + found.cost_everything == 5


def test_a_look_at_the_test_split_is_noted_with_its_reason(folder: Path) -> None:
    arguments = ["bench", "cascade", str(folder)]
    with pytest.raises(UserError, match="leave --why out"):
        cli([*arguments, "--split", "development", "--why", "a trial"], standalone_mode=False)
    assert not (folder / TOUCHES).exists()
    CliRunner().invoke(cli, [*arguments, "--why", "the default gate"])
    (noted,) = json.loads((folder / TOUCHES).read_text())
    assert (noted["why"], noted["metrics"]) == ("the default gate", ["residual_gap"])


def test_finite_differences_approach_forward_mode_until_rounding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "FEW", 12)
    monkeypatch.setattr(exactness, "STEPS", (0.01, 0.3, 1.0, 10.0))
    found = exactness.steps(folder, "test")
    forms = [form for form in exactness.FORMS if form != "fd_bf16" or cpu_has_bf16()]
    assert [(step.form, step.h) for step in found] == [(form, h) for form in forms for h in exactness.STEPS]
    error = {(step.form, step.h): step.median_error for step in found}
    assert all(error[form, 1.0] < error[form, 10.0] for form in forms)
    assert min(step.correlation for step in found if step.h in (0.3, 1.0) and step.form != "fd_bf16") > 0.99
    if "fd_bf16" in forms:
        # Rounding drowns a short step first.
        assert error["fd_bf16", 0.01] > 10 * error["fd", 0.01]


@pytest.mark.skipif(not cpu_has_bf16(), reason="emulated bfloat16 takes minutes")
def test_bfloat16_is_compared_metric_by_metric(folder: Path) -> None:
    found = {p.metric: p for p in exactness.precisions(folder, "test")}
    assert {"residual_gap", "noise_gap", "sharpness", "hessian_trace"} <= set(found)
    assert all(p.difference_low <= p.tpr - p.tpr_float32 for p in found.values())
    assert all(p.correlation_low <= p.correlation for p in found.values())
    # A network of random weights on one style of prompts: rounding drowns a probe, not a difference of prompts.
    assert found["hessian_trace"].correlation < found["noise_gap"].correlation
    assert not found["hessian_trace"].offered
    page = exactness.markdown([], list(found.values()))
    assert "| hessian_trace |" in page


def test_what_is_offered_in_bfloat16_is_what_passes_the_rule() -> None:
    def lines(metric: str, correlation_low: float, difference_low: float, positives: int) -> list[str]:
        made = exactness.Precision(metric, 0.999, correlation_low, 0.5, 0.6, difference_low, 517, positives)
        return unmet(list(exactness.bench_lines([], [made])), [])

    assert lines("residual_gap", 0.991, -0.2, 17) == []
    assert "residual_gap.correlation_low is 0.989" in lines("residual_gap", 0.989, 0.0, 17)[0]
    assert lines("residual_gap", 0.991, -0.04, 106) == []
    assert "residual_gap.tpr1_difference_low is -0.06" in lines("residual_gap", 0.995, -0.06, 106)[0]
    assert lines("hessian_trace", 0.5, -0.3, 106) == []
    # Nor may one be kept from bfloat16 that passes.
    assert lines("hessian_trace", 0.995, -0.01, 106) == ["exactness.bf16.hessian_trace.passes is 1 rules, the goal 0"]


def test_the_default_step_is_held_to_the_rule_of_ranks() -> None:
    step = exactness.Step(200, "fd", 0.32, 0.995, 0.9899, 0.05, 0.2, default=True)
    assert "fd_h0.32.correlation_low" in unmet(list(exactness.bench_lines([step], [])), [])[0]
    assert unmet(list(exactness.bench_lines([replace(step, default=False), replace(step, low=0.991)], [])), []) == []
    assert "| 0.32, the default |" in exactness.markdown([step], [])


def test_without_bfloat16_nothing_is_claimed_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "cpu_has_bf16", lambda: False)
    assert exactness.precisions(folder, "test") == []
    assert "not measured" in exactness.markdown([], [])
