from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit import devices
from sharpaudit.devices import choose_device, choose_dtype, lists_bf16, room_for, share_threads
from sharpaudit.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADER = "processor\t: 0\nmodel name\t: A CPU\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (f"{HEADER}flags\t\t: fpu avx2 avx512_bf16 sse\n", True),
        (f"{HEADER}flags\t\t: fpu amx_bf16\n", True),
        (f"{HEADER}flags\t\t: fpu avx2 avx512f\n", False),
        (f"{HEADER}flags\t\t: fpu not_avx512_bf16_at_all\n", False),
        (f"{HEADER}bugs\t\t: avx512_bf16\n", False),
        ("", False),
    ],
)
def test_instruction_set_is_read_from_the_flags_line(cpuinfo, expected):
    assert lists_bf16(cpuinfo) is expected


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_any_text_may_be_parsed(text):
    assert isinstance(lists_bf16(text), bool)


@pytest.fixture
def machine(monkeypatch):
    """A machine of our choice: `machine(cuda=True, cuda_bf16=False, cpuinfo="...")`."""

    def make(*, cuda=False, cuda_bf16=True, cpu_bf16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda_bf16)
        monkeypatch.setattr(devices, "_cpuinfo", lambda: "flags : avx512_bf16" if cpu_bf16 else "flags : avx2")

    return make


def test_auto_takes_cuda_where_there_is_one(machine):
    machine(cuda=True)
    assert choose_device("auto") == choose_device("cuda") == CUDA
    assert choose_device("cpu") == CPU


def test_auto_is_the_cpu_elsewhere_and_cuda_is_refused(machine):
    machine(cuda=False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(UserError, match=r'model\.device = "cuda".*use "cpu" or "auto"'):
        choose_device("cuda")


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_exactly_where_the_device_has_it(machine, native):
    machine(cuda=True, cuda_bf16=native, cpu_bf16=native)
    expected = torch.bfloat16 if native else torch.float32
    assert choose_dtype("auto", CPU) == choose_dtype("auto", CUDA) == expected


def test_emulated_bfloat16_is_refused_on_a_cpu(machine):
    machine(cpu_bf16=False)
    with pytest.raises(UserError, match='600 times slower than float32; use "float32" or "auto"'):
        choose_dtype("bfloat16", CPU)
    machine(cpu_bf16=True)
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16


def test_float16_is_for_cuda_only(machine):
    machine(cuda=True, cpu_bf16=True)
    assert choose_dtype("float16", CUDA) == torch.float16
    with pytest.raises(UserError, match="float16"):
        choose_dtype("float16", CPU)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 512), st.integers(1, 512))
def test_shares_use_all_cores_and_no_core_twice(cores, workers):
    threads = share_threads([cores], workers)
    assert threads >= 1
    if workers <= cores:
        assert cores - workers < threads * workers <= cores


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=5), st.integers(1, 20))
def test_on_several_machines_every_worker_finds_its_threads_on_one(cores, workers):
    threads = share_threads(cores, workers)
    room = [sum(found // n for found in cores) for n in (threads, threads + 1)]
    assert threads == 1 or room[0] >= workers
    assert room[1] < workers


def test_threads_leave_every_worker_the_gpu_share_that_it_needs():
    """A machine of many cores with one GPU holds one worker, so that the other machine's cores decide."""
    assert share_threads([64, 16], 2) == 32
    assert share_threads([64, 16], 2, places=[1, 1]) == 16
    assert room_for(32, [64, 16], [1, 1]) == 1
    # A head without a GPU takes no part.
    assert share_threads([64, 16], 2, places=[0, 2]) == 8


def test_threads_asked_for_are_given():
    assert share_threads([8], 4, 3) == 3


def test_cores_are_those_that_this_process_may_use(monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(devices, "CPU_QUOTA", quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    assert devices.usable_cores() == 4
    for text, cores in (("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("6400000 100000", 4)):
        quota.write_text(text + "\n")
        assert devices.usable_cores() == cores


def test_memory_is_what_is_free_and_what_the_container_may_still_take(monkeypatch, tmp_path):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(devices, "MEMORY_LIMIT", limit)
    monkeypatch.setattr(devices, "MEMORY_USED", used)
    monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    assert devices.free_memory() == 5000
    used.write_text("900\n")
    for text, free in (("max", 5000), ("9000", 5000), ("2000", 1100), ("100", 0)):
        limit.write_text(text + "\n")
        assert devices.free_memory() == free


def test_workers_on_other_machines_may_have_the_gpus_that_this_one_lacks(machine):
    machine(cuda=False)
    assert choose_device("auto", gpus_elsewhere=True) == choose_device("cuda", gpus_elsewhere=True) == CUDA
    assert choose_dtype("bfloat16", CUDA) == torch.bfloat16
    with pytest.raises(UserError, match=r'model\.dtype = "auto": run\.num_gpus asks for GPUs.*say "bfloat16"'):
        choose_dtype("auto", CUDA)


@pytest.fixture
def interop_pool(monkeypatch):
    """PyTorch's second thread pool, which can be resized once a process, played by a list of the sizes asked for."""
    asked = []

    def resize(n):
        asked.append(n)
        if len(asked) > 1:
            raise RuntimeError("cannot set number of interop threads")

    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_interop_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_interop_threads", resize)
    yield asked
    torch.set_num_threads(before)


def test_threads_may_be_set_again_and_again(interop_pool):
    for n in (1, 2, 1):
        devices.use_threads(n)
        assert torch.get_num_threads() == n
    assert set(interop_pool) == {1}


def test_hardware_is_described_in_plain_values(machine, monkeypatch):
    machine(cuda=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"device {i}")
    found = devices.describe_hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["devices"] == ["device 0", "device 1"]
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**20
    assert found["torch"] == torch.__version__


def test_cpu_is_named_by_its_model(monkeypatch):
    monkeypatch.setattr(devices, "_cpuinfo", lambda: HEADER)
    assert devices.describe_hardware()["cpu"] == "A CPU"


def test_machine_without_cpuinfo_is_described_too(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "absent")
    assert not devices.cpu_has_bf16()
    assert devices.describe_hardware()["cpu"]
