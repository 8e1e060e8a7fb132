"""What stands around the work: the start of a stage, DVC where nothing is to be done, and the tracker."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STAGES = ("plan", "prepare", "pretrain", "evaluate", "sweep", "report")
PIPELINE = """
stages:
  work:
    matrix: {entry: %s}
    cmd: echo ${item.entry} > ${item.entry}
    outs: [{"${item.entry}": {cache: false}}]
"""


def overhead() -> dict[str, Any]:
    """Seconds of each stage's imports, of the stage that pretrains `untrained`, which takes no steps, and of DVC on so
    many stages, all done; and what tracking adds to the stage that pretrains SimCLR, in percent.
    """
    nothing = pretraining("untrained")
    tracked = pretraining("untrained", tracked=True)
    return {
        "import": {stage: taken([sys.executable, "-c", f"import stages.{stage}"]) for stage in STAGES},
        "nothing": nothing,
        "dvc": [{"at": n, **idle(n)} for n in (30, 150, 400)],
        "tracking": 100 * (tracked - nothing) / pretraining("simclr", goes=1),
    }


def pretraining(entry: str, tracked: bool = False, goes: int = 3) -> float:
    """Seconds of the whole stage that pretrains an entry on pictures with all seeds, in a folder where none is kept."""
    return min(pretraining_anew(entry, tracked) for _ in range(goes))


def pretraining_anew(entry: str, tracked: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("plan.json", "keys.json", "params.yaml", "data", "ssl_methods"):
            (folder / file).symlink_to(Path(file).resolve())
        store = f"sqlite:///{folder}/mlflow.db" if tracked else "off"
        command = [sys.executable, "-m", "stages.pretrain", "image", entry]
        return taken(command, folder, goes=1, MLFLOW_TRACKING_URI=store)


def idle(stages: int) -> dict[str, float]:
    """Seconds of `dvc repro` and of `dvc status` on a pipeline of so many stages, all of them done."""
    with tempfile.TemporaryDirectory() as name:
        folder, dvc = Path(name), [sys.executable, "-m", "dvc"]
        entries = [f"m{number}" for number in range(stages)]
        (folder / "dvc.yaml").write_text(PIPELINE % json.dumps(entries))
        for entry in entries:
            (folder / entry).write_text(f"{entry}\n")
        for verb in (["init", "--no-scm"], ["commit", "-f"]):
            subprocess.run([*dvc, *verb, "-q"], check=True, cwd=folder)
        return {verb: taken([*dvc, verb, "-q"], folder) for verb in ("repro", "status")}


def taken(command: list[str], where: Path | None = None, goes: int = 3, **variables: str) -> float:
    """The least seconds of a command that succeeds. It imports this repository's modules, wherever it runs."""
    environment, least = {**os.environ, "PYTHONPATH": str(Path.cwd()), **variables}, float("inf")
    for _ in range(goes):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=where, env=environment)
        least = min(least, time.perf_counter() - began)
    return least
