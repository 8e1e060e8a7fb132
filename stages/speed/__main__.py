"""How fast pretraining is: against the device's limit, against peers, and as work grows. Outside the default run.

    python -m stages.speed [limit methods peers growth overhead] [--seconds 2] [--threads 2]

Every figure comes from one run on the device at hand: what is compared runs in turns, so that a moment when the machine
is busy hits all alike, and the medians of the turns are compared. They go to reports/speed.json, beside the other parts
if those were measured on the same device.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from ..common.command import command
from ..common.files import read_json, write_json
from ..common.settings import InputError, Settings, read
from ..training import devices
from .entries import limit, methods
from .growth import growth
from .overhead import overhead

OUT = Path("reports/speed.json")


def peers(settings: Settings, seconds: float) -> dict[str, Any]:
    from .peers import peers  # only here are lightly and kornia needed

    return peers(settings, seconds)


PARTS = {
    "limit": lambda settings, seconds: limit(devices.choose("auto"), seconds),
    "methods": methods,
    "peers": peers,
    "growth": growth,
    "overhead": lambda settings, seconds: overhead(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--threads", type=int, help="on a CPU")
    given = parser.parse_args()
    if odd := set(given.parts) - set(PARTS):
        raise InputError(f"speed has no part {', '.join(sorted(odd))}; its parts are {', '.join(PARTS)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    device = devices.choose("auto")
    here = {
        "device": devices.describe(device),
        "precision": devices.name_of(devices.choose_precision("auto", device)),
        "torch": torch.__version__,
    }
    print(*here.values())
    found = read_json(OUT)
    if {key: found.get(key) for key in here} != here:  # figures of different machines say nothing together
        found = here
    settings = read()
    for part in given.parts:
        found[part] = PARTS[part](settings, given.seconds)
        write_json(OUT, found)


if __name__ == "__main__":
    command(main)
