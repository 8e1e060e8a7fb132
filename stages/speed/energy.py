"""The energy that a machine counts, where it does: of CPU packages by RAPL, of an NVIDIA GPU by NVML."""

from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")  # https://docs.kernel.org/power/powercap/powercap.html
Counter = tuple[Callable[[], int], int, float]  # how to read it, where it starts again from 0, joules for each count
NEVER = 2**64


class Meter:
    """Joules since it was made; a counter that runs over is followed, if it is read before it runs over twice."""

    def __init__(self, device: torch.device, powercap: Path = POWERCAP):
        self.counters = gpu(device) if device.type == "cuda" else packages(powercap)
        self.last = [read() for read, _, _ in self.counters]
        self.joules = 0.0

    def read(self) -> float | None:
        """None where the machine counts no energy, or does not say."""
        for i, (read, size, unit) in enumerate(self.counters):
            now = read()
            self.joules += (now - self.last[i]) % size * unit
            self.last[i] = now
        return self.joules if self.counters else None


def packages(powercap: Path) -> list[Counter]:
    """Of each CPU package, in microjoules. Most systems let nobody but root read them."""
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:[0-9]")):
        try:
            size = int((zone / "max_energy_range_uj").read_text()) + 1
            int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            continue
        counters.append((lambda zone=zone: int((zone / "energy_uj").read_text()), size, 1e-6))
    return counters


def gpu(device: torch.device) -> list[Counter]:
    """Of the GPU, in millijoules, since its driver was loaded; nothing without pynvml. No GPU has tried this yet."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no such module, library or counter: then there is nothing to say
        return []
    return [(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), NEVER, 1e-3)]
