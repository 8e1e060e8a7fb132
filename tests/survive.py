"""A small pipeline, killed at random moments again and again, must end as one that was left alone.

    python -m tests.survive --kills 50 --seed 0

Not collected by pytest: it takes as long as it is given kills. One pipeline runs undisturbed and is the reference. In
fresh copies `dvc repro` is killed with all its processes (SIGKILL, which nothing can catch), and started again, over
and over, until it ends. After each kill whatever a reader would take for whole is looked at; each
pipeline that ends is compared with the reference: data, weights, scores, tables, trials, and MLflow's runs with every
point of their curves.
The moments come from the seed. Exit code 1 and one line per difference where there is any.
"""

import argparse
import csv
import hashlib
import io
import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from safetensors import safe_open

from tests.pipeline.test_pipeline import LEFT_OUT, ROOT, Project, tiny

# What differs from run to run: times, and memory.
TIMED = {"seconds", "evaluation_seconds", "samples_per_second", "peak_memory_mb", "clock"}
# Whole as soon as it has its name. README.md, paper.tex and index.html speak of seconds.
WHOLE = (
    "plan.json",
    "keys.json",
    "data/*/**/*",
    "models/**/*",
    "metrics/**/*",
    "reports/*.csv",
    "reports/summary.json",
)
WHOLE += ("reports/sweeps/**/*",)
LONGEST = 0.25  # until a kill: the share of the time that the reference took
PATIENCE = 300.0  # seconds in which anything ends that is left alone


def small(params: dict) -> None:
    """Three entries of one modality, two seeds, some seconds of training each, and a sweep."""
    tiny(params)
    for modality, block in params["benchmark"].items():
        block["methods"] = ["untrained", "simclr", "byol"] if modality == "image" else []
    params["training"]["laptop"] |= {"epochs": 0.5, "batch_size": 32}


def fresh(folder: Path) -> Project:
    """A copy of the repository in which nothing has run."""
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    shutil.rmtree(folder / "reports/sweeps")
    for path in (*(folder / "reports").glob("*.*"), folder / "plan.json"):
        if path.name != "speed.json":
            path.unlink()
    project = Project(folder)
    project.checkpoint_every(0.5)  # to be resumed, too
    project.run("git", "init", "--quiet")
    project.change(small)
    return project


# ---- What a pipeline leaves


def content(path: Path) -> Any:
    """What is to be equal in a file. Fails for one that is not whole."""
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        timed = [at for at, name in enumerate(rows[0]) if name in TIMED]
        return [[cell for at, cell in enumerate(row) if at not in timed] for row in rows if not TIMED & set(row[:-1])]
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as weights:
            assert weights.keys()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items() if key not in TIMED}
    return [without_times(value) for value in found] if isinstance(found, list) else found


def files(project: Project) -> list[str]:
    """What a reader would take for whole. Weights are, once status.json lies beside them."""
    found = [path for pattern in WHOLE for path in project.folder.glob(pattern) if path.is_file()]
    told = [path for path in found if path.suffix != ".safetensors" or (path.parent / "status.json").exists()]
    return sorted(name for path in told if ".partial" not in (name := str(path.relative_to(project.folder))))


def locked(project: Project) -> dict[str, Any]:
    """{stage: {data or weights: hash}}, of dvc.lock."""
    path = project.folder / "dvc.lock"
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}
    return {
        name: {out["path"]: out["md5"] for out in stage["outs"] if out["path"].startswith(("data/", "models/"))}
        for name, stage in stages.items()
    }


def tracked(project: Project) -> list[Any]:
    """MLflow's runs: what each is of, how it ended, and the points of its curves."""
    asked = "select run_uuid, status from runs where lifecycle_stage = 'active'"
    found = []
    with closing(sqlite3.connect(project.folder / "mlflow.db")) as store:
        for run, state in store.execute(asked).fetchall():
            tags = dict(store.execute("select key, value from tags where run_uuid = ?", [run]))
            points = store.execute("select key, step, value, is_nan from metrics where run_uuid = ?", [run]).fetchall()
            identity = [tags.get(key, "") for key in ("kind", "modality", "entry", "seed", "key")]
            found.append(
                [
                    *identity,
                    state,
                    tags.get("status"),
                    sorted(p for p in points if p[0].removesuffix("_ci95") not in TIMED),
                ]
            )
    return sorted(found)


def differences(project: Project, reference: dict[str, Any]) -> list[str]:
    """What a pipeline that has ended has otherwise than the reference."""
    found = []
    ended = state_of(project)
    for path in sorted(ended["files"].keys() ^ reference["files"].keys()):
        found.append(f"{path} is {'not there' if path in reference['files'] else 'one too many'}")
    for path in ended["files"].keys() & reference["files"].keys():
        if ended["files"][path] != reference["files"][path]:
            found.append(f"{path} differs")
    if ended["locked"] != reference["locked"]:
        found.append("dvc.lock has other hashes of data or weights")
    before, after = (Counter(map(str, state["tracked"])) for state in (reference, ended))
    found += [f"MLflow lacks {run[:150]}" for run in before - after]
    found += [f"MLflow has too many of {run[:150]}" for run in after - before]
    return found


def state_of(project: Project) -> dict[str, Any]:
    return {
        "files": {path: content(project.folder / path) for path in files(project)},
        "locked": locked(project),
        "tracked": tracked(project),
    }


def half_written(project: Project, reference: dict[str, Any]) -> list[str]:
    """What, after a kill, would be taken for whole and is not: not to be read, or other than in the reference."""
    found = []
    for path in files(project):
        try:
            if path != "keys.json" and content(project.folder / path) != reference["files"].get(path):
                found.append(f"{path} is there, and not as it should be")
        except Exception as error:  # whatever half a file makes of itself
            found.append(f"{path} cannot be read: {type(error).__name__}: {error}")
    for path in (project.folder / ".dvc/cache/files/md5").glob("??/*"):
        name = path.parent.name + path.name.removesuffix(".dir")
        if re.fullmatch("[0-9a-f]{32}", name) and hashlib.md5(path.read_bytes()).hexdigest() != name:
            found.append(f"DVC's cache has other bytes than its name says: {name}")
    return found


def torn(project: Project) -> bool:
    """Whether DVC was killed while it wrote dvc.lock, which it does in place. Then does what README.md says to do."""
    lock = project.folder / "dvc.lock"
    try:
        locked(project)
        whole = not lock.exists() or lock.stat().st_size > 0
    except Exception:  # whatever half a file makes of itself
        whole = False
    if not whole:
        lock.unlink()
    return not whole


# ---- Lives and deaths


def begin(project: Project, log: Path) -> subprocess.Popen:
    with log.open("w") as file:
        return subprocess.Popen(
            ["dvc", "repro"],
            cwd=project.folder,
            env=project.environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own, to be killed at once
        )


def stage_in(log: Path) -> str:
    """What DVC said last that it was doing."""
    said = re.findall(r"^(?:Running stage '(.+)'|(Updating lock file|Use `dvc push`).*)", log.read_text(), re.MULTILINE)
    return " ".join(filter(None, said[-1])) if said else "dvc, starting"


def kill(project: Project) -> None:
    """Ends all that works there, at once."""
    found = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(project.folder.resolve())]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    moments, faults = random.Random(given.seed), []
    kills, struck, pipelines, locks_torn = 0, Counter(), 0, 0

    def blame(found: list[str]) -> None:
        faults.extend(found)
        for fault in found:
            print(f"     FAULT: {fault}", flush=True)

    with tempfile.TemporaryDirectory(prefix="survive") as place:
        began = time.monotonic()
        project, log = fresh(Path(place, "reference")), Path(place, "log")
        project.run("dvc", "repro")
        reference = state_of(project)
        assert all(run[5:7] in (["FINISHED", "ok"], ["FINISHED", "collapsed"]) for run in reference["tracked"])
        kinds = Counter(run[0] for run in reference["tracked"])
        took = time.monotonic() - began
        print(f"reference: {took:.0f} s, {len(reference['files'])} files, {dict(kinds)}", flush=True)

        while kills < given.kills:
            folder = Path(place, f"copy{pipelines}")
            project, ended = fresh(folder), False
            while not ended:
                process, moment = begin(project, log), moments.uniform(0, LONGEST) * took
                try:
                    process.wait(moment if kills < given.kills else PATIENCE)
                    ended = True
                except subprocess.TimeoutExpired:
                    kill(project)
                    process.wait()
                    if kills == given.kills:
                        raise SystemExit(f"`dvc repro` does not end:\n{log.read_text()}") from None
                    kills += 1
                    where = stage_in(log)
                    struck[where.partition("@")[0]] += 1
                    print(f"{kills:4} {moment:6.2f} s  pipeline {pipelines}, {where}", flush=True)
                    blame(half_written(project, reference))
                    locks_torn += torn(project)
            pipelines += 1
            if process.returncode:
                blame([f"`dvc repro` fails: {log.read_text()[-1500:]}"])
            else:
                blame(differences(project, reference))
                print(f"     pipeline {pipelines - 1} has ended, {len(faults)} faults so far", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{kills} kills (seed {given.seed}) of {pipelines} pipelines, {time.monotonic() - began:.0f} s, {dict(struck)}"
    )
    print(f"dvc.lock was torn by {locks_torn} of them")
    if faults:
        sys.exit(f"{len(faults)} faults")
    print("every pipeline ended as the one that was left alone")


if __name__ == "__main__":
    main()
