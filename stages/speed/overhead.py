"""What stands around the work: the start of a stage, DVC where nothing is to be done, and the tracker."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STAGES = ("plan", "prepare", "pretrain", "evaluate", "sweep", "report")
GOES = 3  # of which the quickest counts
PIPELINE = """
stages:
  work:
    matrix: {entry: %s}
    cmd: echo ${item.entry} > ${item.entry}
    outs: [{"${item.entry}": {cache: false}}]
"""


def overhead() -> dict[str, Any]:
    """Seconds of each stage's imports, of the stage that pretrains `untrained`, which takes no steps, and of DVC on so
    many stages, all done; and what writing an entry into MLflow takes, in percent of the stage that pretrains SimCLR.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("plan.json", "keys.json", "params.yaml", "data", "ssl_methods"):
            (folder / file).symlink_to(Path(file).resolve())

        def stage(name: str, entry: str, store: str = "off") -> float:
            command = [sys.executable, "-m", f"stages.{name}", "image", entry]
            return taken(command, folder, goes=1, MLFLOW_TRACKING_URI=store)

        def nothing() -> float:
            shutil.rmtree(folder / ".scratch", ignore_errors=True)  # where finished seeds are kept
            return stage("pretrain", "untrained")

        pretrained = min(nothing() for _ in range(GOES))
        stage("evaluate", "untrained")
        kept = min(stage("evaluate", "untrained") for _ in range(GOES))
        tracked = min(stage("evaluate", "untrained", f"sqlite:///{folder}/{go}.db") for go in range(GOES))
        simclr = stage("pretrain", "simclr")
    return {
        "import": {stage: taken([sys.executable, "-c", f"import stages.{stage}"]) for stage in STAGES},
        "nothing": pretrained,
        "dvc": [{"at": n, **idle(n)} for n in (30, 150, 400)],
        "tracking": 100 * (tracked - kept) / simclr,
    }


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


def taken(command: list[str], where: Path | None = None, goes: int = GOES, **variables: str) -> float:
    """The least seconds of a command that succeeds. It imports this repository's modules, wherever it runs."""
    environment, least = {**os.environ, "PYTHONPATH": str(Path.cwd()), **variables}, float("inf")
    for _ in range(goes):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=where, env=environment)
        least = min(least, time.perf_counter() - began)
    return least
