"""What pretraining and evaluation cost as work grows, and what stands around the work.   (parts of stages.speed)"""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ..common.files import write_json
from ..common.settings import Entry, Settings
from ..measures import knn, linear
from ..training import checkpoint, devices
from ..training.loop import CHECKPOINT_SECONDS, POINTS
from .__main__ import TURNS, Trainer, prepared, quickest, race

CPU = torch.device("cpu")


def growth(settings: Settings, seconds: float) -> dict[str, list[dict[str, float]]]:
    """Seconds per sample of SimCLR and MoCo, per row of probe and k-NN, per run of the report, as one thing grows."""
    emoji = prepared("image")
    simclr, moco = settings.entry("image", "simclr"), settings.entry("image", "moco")

    def cost(entry: Entry, folder: Path = emoji) -> float:
        trainer = Trainer(entry, folder, devices.choose(entry.training.device))
        return 1 / race({"": lambda: trainer.turn(seconds / TURNS)})[""]["median"]

    def cost_of_noise(rows: int, side: int) -> float:
        with noise(rows, side) as folder:
            return cost(simclr, folder)

    def trained(entry: Entry, **changes: Any) -> Entry:
        return entry.model_copy(update={"training": entry.training.model_copy(update=changes)})

    def wide(entry: Entry, width: int) -> Entry:
        return entry.model_copy(update={"encoder": {**entry.encoder, "width": width}})

    def queued(entry: Entry, queue: int) -> Entry:
        return entry.model_copy(update={"hyper": {**entry.hyper, "queue": queue}})

    return {
        "batch size": [{"at": n, "seconds": cost(trained(simclr, batch_size=n))} for n in (32, 64, 128, 256, 512)],
        "width": [{"at": n, "seconds": cost(wide(simclr, n))} for n in (16, 32, 64, 128)],
        "queue": [{"at": n, "seconds": cost(queued(moco, n))} for n in (1024, 4096, 16384, 65536)],
        "resolution": [{"at": n, "seconds": cost_of_noise(512, n)} for n in (16, 32, 64, 128)],
        "rows of data": [{"at": n, "seconds": cost_of_noise(n, 16)} for n in (1000, 10_000, 100_000)],
        **probes(seconds),
        "runs of the report": [reported(settings, seeds) for seeds in (1, 3, 9)],
    }


@contextmanager
def noise(rows: int, side: int) -> Iterator[Path]:
    """Prepared data of random pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train").mkdir()
        drawn = np.random.default_rng(0).integers(0, 256, (rows, 3, side, side), dtype=np.uint8)
        np.save(folder / "train/image.npy", drawn)
        splits = {"train": {"rows": rows}}
        facts = {"data": "noise", "classes": [], "facts": {"size": side}, "hash": "0" * 64, "splits": splits}
        write_json(folder / "manifest.json", facts)
        yield folder


def reported(settings: Settings, seeds: int) -> dict[str, float]:
    """How many runs `seeds` seeds make, and the seconds of the report for each: the repository's own runs, repeated."""
    with project() as folder:
        params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")) | {"seeds": list(range(seeds))}
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        runs = 0
        for modality, bench in settings.benchmark.items():
            for entry in bench.methods:
                for seed in range(seeds):
                    known = Path("metrics", modality, entry, str(settings.seeds[seed % len(settings.seeds)]))
                    place = folder / "metrics" / modality / entry / str(seed)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.symlink_to(known.resolve())
                    runs += 1
        return {"at": runs, "seconds": taken([sys.executable, "-m", "stages.report"], folder, goes=1) / runs}


@contextmanager
def project() -> Iterator[Path]:
    """A folder in which stages run on this repository's settings and data, and write what they make."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("plan.json", "keys.json", "data", "ssl_methods"):
            if Path(file).exists():
                (folder / file).symlink_to(Path(file).resolve())
        (folder / "params.yaml").write_bytes(Path("params.yaml").read_bytes())
        yield folder


def probes(seconds: float) -> dict[str, list[dict[str, float]]]:
    """The linear probe and k-NN on made features of 128 dimensions, of ten classes: seconds per row."""

    def features(rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        labels = torch.arange(rows) % classes
        return torch.randn(rows, 128) + torch.randn(classes, 128)[labels], labels

    def probe(rows: int, classes: int) -> float:
        data = features(rows, classes)
        return quickest(lambda: list(linear.fit(data, strengths=[1e-3], classes=classes)), CPU, seconds) / rows

    def vote(rows: int) -> float:
        bank, (queries, _) = features(rows, 10), features(2000, 10)
        vote = lambda: knn.predict(bank, queries, ks=[20], temperature=0.07, classes=10)  # noqa: E731
        return quickest(vote, CPU, seconds) / rows

    return {
        "rows of the probe": [{"at": n, "seconds": probe(n, 10)} for n in (2000, 8000, 32000)],
        "classes of the probe": [{"at": n, "seconds": probe(8000, n)} for n in (10, 40, 160)],
        "rows of k-NN": [{"at": n, "seconds": vote(n)} for n in (2000, 8000, 32000)],
    }


def overhead(settings: Settings) -> dict[str, Any]:
    """Seconds of a stage's start and end around no work, and of DVC where nothing is to be done; what waiting
    for MLflow and saving checkpoints add to a pretraining, in percent; and the memory of each stage.
    """
    stages = ("plan", "prepare", "pretrain", "evaluate", "sweep", "report")
    return {
        "import": {stage: taken([sys.executable, "-c", f"import stages.{stage}"]) for stage in stages},
        "nothing": pretraining("untrained", tracked=True),
        "dvc": [{"at": n, **idle(n)} for n in (30, 150, 400)],
        "tracking": 100 * tracking() / pretraining("simclr", tracked=False),
        "checkpoints": checkpoints(settings.entry("image", "simclr")),
        "memory": memory(),
    }


def memory() -> dict[str, float]:
    """The most main memory that each stage holds, in MB: of pictures and SimCLR, and of the report on all runs."""
    with project() as folder:
        (folder / "data").unlink()  # it prepares its own
        stages = ["prepare image", "pretrain image simclr", "evaluate image simclr", "sweep image simclr"]
        found = {stage: held(folder, *stage.split()) for stage in stages}
    with project() as folder:
        (folder / "metrics").symlink_to(Path("metrics").resolve())
        return found | {"report": held(folder, "report")}


def held(where: Path, stage: str, *given: str) -> float:
    """The most main memory that a stage holds there, in MB."""
    code = f"""
        import torch
        from stages import devices, {stage}

        {stage}.main()
        print(devices.peak_memory_mb(torch.device("cpu")))
        """
    return told(where, code, *given, MLFLOW_TRACKING_URI="off")


def told(where: Path, code: str, *given: str, **variables: str) -> float:
    """The number that a program prints last."""
    command = [sys.executable, "-c", textwrap.dedent(code), *given]
    return float(said(command, where, **variables).splitlines()[-1])


def said(command: list[str], where: Path | None = None, **variables: str) -> str:
    """What a command that succeeds prints. It imports this repository's modules, wherever it runs."""
    settings = {**os.environ, "PYTHONPATH": str(Path.cwd()), **variables}
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=where, env=settings).stdout


def pretraining(entry: str, tracked: bool) -> float:
    """Seconds of the whole stage that pretrains an entry, from its start to its end."""
    with project() as folder:
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db" if tracked else "off"}
        return taken([sys.executable, "-m", "stages.pretrain", "image", entry], folder, **store)


def tracking() -> float:
    """Seconds that a run waits for its tracker: at its beginning, at each point of its curves, and at its end."""
    with project() as folder:
        return min(
            told(
                folder,
                f"""
                import time
                from stages import tracking

                began, given = time.perf_counter(), {{"params": {{}}, "tags": {{}}, "key": "{go}"}}
                with tracking.start("pretrain", modality="image", name="simclr", seed=0, **given) as run:
                    for step in range({POINTS}):
                        run.log(step, loss=1.0, information=1.0, lr=1.0)
                    run.finish()
                print(time.perf_counter() - began)
                """,
                MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
            )
            for go in range(3)
        )


def checkpoints(entry: Entry) -> float:
    """The share of a pretraining that saving its checkpoints takes, in percent."""
    trainer = Trainer(entry, prepared("image"), devices.choose(entry.training.device))
    trainer.step()
    state = {"method": trainer.method.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    with tempfile.TemporaryDirectory() as name:
        save = lambda: checkpoint.save(Path(name), trainer.device, **state)  # noqa: E731
        return 100 * quickest(save, trainer.device, seconds=1) / CHECKPOINT_SECONDS


def taken(command: list[str], where: Path | None = None, goes: int = 3, **variables: str) -> float:
    """The least seconds of a command that succeeds."""
    least = float("inf")
    for _ in range(goes):
        began = time.perf_counter()
        said(command, where, **variables)
        least = min(least, time.perf_counter() - began)
    return least


def idle(stages: int) -> dict[str, float]:
    """Seconds of `dvc repro` and of `dvc status` on a pipeline of so many stages, all of them done."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dvc.yaml").write_text(
            textwrap.dedent(f"""\
                stages:
                  work:
                    matrix:
                      entry: {json.dumps([f"m{i}" for i in range(stages)])}
                    cmd: echo ${{item.entry}} > ${{item.entry}}
                    outs:
                    - ${{item.entry}}:
                        cache: false
                """)
        )
        dvc = [sys.executable, "-m", "dvc"]
        subprocess.run([*dvc, "init", "--no-scm", "-q"], check=True, cwd=folder)
        for number in range(stages):
            (folder / f"m{number}").write_text(f"m{number}\n")
        subprocess.run([*dvc, "commit", "-q", "-f"], check=True, cwd=folder)
        return {verb: taken([*dvc, verb, "-q"], folder) for verb in ("repro", "status")}
