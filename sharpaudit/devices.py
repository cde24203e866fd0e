"""Which device, precision and thread count the network gets on this machine, and what the machine is.

bfloat16 on a CPU without the instructions for it is emulated, up to 600 times slower than float32, so "auto"
decides by capability and an explicit wish that cannot be served is refused.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from sharpaudit.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
MEMORY_LIMIT, MEMORY_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def lists_bf16(cpuinfo: str) -> bool:
    """Whether the text of /proc/cpuinfo lists an instruction set for bfloat16."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return any(name.strip() == "flags" and BF16_FLAGS & set(flags.split()) for name, _, flags in lines)


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 by itself; False where that cannot be known."""
    return lists_bf16(_cpuinfo())


def choose_device(name: str, *, gpus_elsewhere: bool = False) -> torch.device:
    """The device of `model.device`: "auto" is CUDA where there is one, here or, if so, on the workers' machines."""
    there = torch.cuda.is_available() or gpus_elsewhere
    if name == "cuda" and not there:
        raise UserError('model.device = "cuda": PyTorch sees no CUDA device here; use "cpu" or "auto"')
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The network's precision for `model.dtype`: "auto" is bfloat16 where the device has it, else float32."""
    on_cuda = device.type == "cuda"
    if name == "auto" and on_cuda and not torch.cuda.is_available():
        raise UserError(
            'model.dtype = "auto": run.num_gpus asks for GPUs, and this machine sees none whose precision could be '
            'chosen for the workers; say "bfloat16", "float16" or "float32", or run where there is one'
        )
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else cpu_has_bf16()
        return torch.bfloat16 if native else torch.float32
    if name == "bfloat16" and not on_cuda and not cpu_has_bf16():
        raise UserError(
            'model.dtype = "bfloat16": this CPU has neither avx512_bf16 nor amx_bf16, so it would be up to 600 times '
            'slower than float32; use "float32" or "auto"'
        )
    if name == "float16" and not on_cuda:
        raise UserError('model.dtype = "float16": only CUDA devices compute in float16; use "float32" or "auto"')
    return DTYPES[name]


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, and no more than its container's quota pays for.

    The quota is that of version 2 control groups.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="utf-8").split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def free_memory() -> int:
    """Bytes of memory that a new use may take: what the machine has free, and no more than its container is allowed.

    The limit is that of version 2 control groups.
    """
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int(path.read_text(encoding="utf-8")) for path in (MEMORY_LIMIT, MEMORY_USED))
        return min(free, max(0, limit - used))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return free


def share_threads(
    cores: Sequence[int], workers: int, asked: int | None = None, places: Sequence[int] | None = None
) -> int:
    """Threads of each worker: what was asked for, or the most with which none fights another for cores.

    cores: of each machine; a worker lives on one. places: workers that find their GPU share there; None for any number.
    At least 1, even where there are more workers than cores.
    """
    if asked is not None:
        return asked
    counts = range(max(cores, default=1), 1, -1)
    return next((n for n in counts if room_for(n, cores, places or [workers] * len(cores)) >= workers), 1)


def room_for(threads: int, cores: Sequence[int], places: Sequence[int]) -> int:
    """How many workers of so many threads find room on machines of these cores and GPU places."""
    return sum(min(found // threads, n) for found, n in zip(cores, places, strict=True))


def places_on(gpus: int, share: float) -> int:
    """How many workers find their GPU share on a machine; a share below 1 lies on one GPU. Any number, if it is 0."""
    if share == 0:
        return sys.maxsize
    return gpus * int(1 / share) if share <= 1 else int(gpus // share)


def use_threads(n: int) -> None:
    """Let PyTorch compute with n threads in this process."""
    torch.set_num_threads(n)
    if torch.get_num_interop_threads() != 1:
        # The network is one chain of operations. Possible once a process, and only before the first of them.
        with suppress(RuntimeError):
            torch.set_num_interop_threads(1)


def forbid_tf32() -> None:
    """Make float32 mean float32 on CUDA: TF32 would round its products and convolutions to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def describe_hardware() -> dict[str, Any]:
    """What run.json says of the machine."""
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "cpu": _cpu_model(_cpuinfo()),
        "cpu_has_bf16": cpu_has_bf16(),
        # The machine's, not the process's share of them: the record of a finished run does not change with `taskset`.
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "devices": [torch.cuda.get_device_name(i) for i in range(n_devices)],
        "torch": torch.__version__,
    }


def hardware_in_words() -> str:
    """Where figures were measured: processor, its instructions, accelerators and PyTorch, in one line."""
    found = describe_hardware()
    instructions = f"{torch.backends.cpu.get_cpu_capability()}{', bfloat16' if found['cpu_has_bf16'] else ''}"
    parts = [f"{usable_cores()} cores of {found['cpu']} ({instructions})", *found["devices"]]
    return f"Measured on {', '.join(parts)}, PyTorch {found['torch']}."


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
