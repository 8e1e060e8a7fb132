"""Freezes one pretrained encoder and measures its features.   python -m stages.evaluate image simclr --seed 0

data/<modality> and models/<modality>/<entry>/<seed>/{encoder.safetensors, status.json}
    -> metrics/<modality>/<entry>/<seed>/{scores.json, evaluate.json}
"""

import argparse
import hashlib
import time
from pathlib import Path

import torch

from . import plan
from .common.command import command
from .common.files import write_json
from .common.settings import Evaluation, read
from .measures.protocol import evaluate
from .training import devices
from .training.columns import manifest


def weights_of(models: Path) -> str:
    """Stands for what pretraining left, which no setting of evaluation tells: of other weights it is another run."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(models.glob("*")))).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality")
    parser.add_argument("entry")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.time()

    planned = plan.lookup("evaluate", given.modality, given.entry)
    entry, protocol = read().entry(given.modality, given.entry), Evaluation(**planned["protocol"])
    folder, place = Path("data", given.modality), Path(given.modality, given.entry, str(given.seed))
    provenance = devices.provenance(planned, manifest(folder), devices.choose(protocol.device), torch.float32)
    key = devices.key_of([str(place), planned, provenance, weights_of("models" / place)])

    from .tracking import runs as tracking

    tags = {"family": entry.family, "method": entry.method}
    with tracking.start(
        "evaluate", modality=given.modality, name=given.entry, seed=given.seed, params=planned, tags=tags, key=key
    ) as run:
        working = time.monotonic()
        scores, details = evaluate(
            "models" / place,
            folder,
            given.modality,
            planned["encoder"],
            protocol,
            mapped=given.seed == planned["mapped"],
        )
        details |= {"seconds": round(time.monotonic() - working, 2), "provenance": provenance}
        details["clock"] = [round(began), round(time.time())]  # of the whole stage, in seconds since 1970
        write_json("metrics" / place / "scores.json", scores)
        write_json("metrics" / place / "evaluate.json", details)
        run.finish(**scores)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, float))
    print(f"{given.entry} {given.seed}: {scores['status']}{shown and ': '}{shown}; {details['seconds']:.0f} s")


if __name__ == "__main__":
    command(main)
