"""Which device and precision a run uses, and how it says so."""

import contextlib
import ctypes
import functools
import hashlib
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..common.settings import InputError


def choose(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: unknown device {name!r}; expected auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {name} was asked for, but this machine has {torch.cuda.device_count()} CUDA devices; "
            "set `device: auto` in the training profile"
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies matrices in it, else float32."""
    if name != "auto":
        return getattr(torch, name)
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def keep_freed_memory() -> None:
    """Lets the C library keep what torch frees, instead of giving it back to the system and fetching it anew each step.

    A pretraining of SimCLR takes a fifth less on a CPU, one of MAE the same (2026-12, AVX2, in turns). Does nothing
    where the C library is not glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # the names of mallopt(3) in malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies matrices in bfloat16 faster than in float32: with AMX, or with AMD's AVX-512 BF16,
    measured at two to four times float32. Intel's AVX-512 BF16, without AMX, was measured at half of it.
    """
    has = cpu_capabilities().get
    return has("amx_bf16", False) or (has("avx512_bf16", False) and has("cpu_name", "").startswith("AMD"))


def cpu_capabilities() -> dict[str, Any]:
    """The CPU's name and what it can do, as torch says; where torch is too old (2.9) to say, as Linux does."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        return {"cpu_name": facts.get("model name")} | dict.fromkeys(facts.get("flags", "").split(), True)
    return {}


def clock(device: torch.device) -> Callable[[], float]:
    """What tells the seconds that a run costs: on a CPU those of all its threads, so that whatever else runs beside it
    does not count; on a GPU the time that passes.
    """
    return time.process_time if device.type == "cpu" else time.monotonic


def describe(device: torch.device) -> str:
    """The device in words, as in `cpu: AMD EPYC, 2 threads`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    name = cpu_capabilities().get("cpu_name") or platform.machine()
    return f"cpu: {name}, {torch.get_num_threads()} threads"


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held: on the GPU where it ran there, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux has its own account; what getrusage says there begins with what the parent held.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def name_of(precision: torch.dtype) -> str:
    """As params.yaml spells it: `float32`."""
    return str(precision).removeprefix("torch.")


def provenance(
    planned: dict[str, Any], data: dict[str, Any], device: torch.device, precision: torch.dtype
) -> dict[str, Any]:
    """Where a number comes from: hashes of settings, code and data; the device, the precision, the versions."""
    settings = {key: value for key, value in planned.items() if key != "code"}
    return {
        "config": key_of(settings),
        "code": planned["code"],
        "data": data["hash"][:12],
        "device": describe(device),
        "precision": name_of(precision),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def key_of(content: Any) -> str:
    """Twelve hex digits that stand for anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
