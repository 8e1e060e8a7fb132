"""Pretrains one entry of the table with one seed.   python -m stages.pretrain image simclr --seed 0

data/<modality>/train
    -> models/<modality>/<entry>/<seed>/{encoder.safetensors, status.json}
    -> metrics/<modality>/<entry>/<seed>/pretrain.json (what it cost, and how it went)
"""

import argparse
import time
from pathlib import Path

from . import plan
from .common.command import command
from .common.files import write_json
from .common.settings import Entry
from .training import checkpoint, devices, distributed
from .training.columns import manifest
from .training.loop import train
from .training.record import record, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality")
    parser.add_argument("entry")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.time()

    planned = plan.lookup("pretrain", given.modality, given.entry)
    entry = Entry(modality=given.modality, name=given.entry, **{k: v for k, v in planned.items() if k != "code"})
    if entry.training.processes > 1 and distributed.started() == 1:
        distributed.launch(entry.training.processes, "stages.pretrain")
        return
    folder = Path("data", given.modality)
    place = Path(given.modality, given.entry, str(given.seed))
    device = devices.choose(entry.training.device)
    precision = devices.choose_precision(entry.training.precision, device)
    provenance = devices.provenance(planned, manifest(folder), device, precision)
    name, key = "-".join(["pretrain", *place.parts]), devices.key_of([str(place), planned, provenance])
    if distributed.rank():  # the first alone writes anything
        train(entry, folder, given.seed, keep=checkpoint.folder_of(name, key))
        return

    from .tracking import runs as tracking

    tags = {"family": entry.family, "method": entry.method}
    with (
        checkpoint.scratch(name, key) as keep,
        tracking.start(
            "pretrain", modality=given.modality, name=given.entry, seed=given.seed, params=planned, tags=tags, key=key
        ) as run,
    ):
        trained = train(entry, folder, given.seed, log=run.log, keep=keep)
        result = record(trained, entry, folder, provenance) | {"clock": [round(began), round(time.time())]}
        write(trained, "models" / place)
        write_json("metrics" / place / "pretrain.json", result)
        if result["panel"]:
            run.picture("panel.webp", result["panel"]["webp"])
        run.finish(trained.status, seconds=result["seconds"], samples_per_second=result["samples_per_second"])
    ended = trained.status if trained.status == "ok" else f"{trained.status} at step {trained.step}: {trained.cause}"
    print(f"{given.entry} {given.seed}: {ended}, {trained.seconds:.0f} s")


if __name__ == "__main__":
    command(main)
