"""What goes wrong around a pretraining: it is told in one line, nothing is lost, and the run ends in the same bytes.

The stage itself runs, `python -m stages.pretrain`, in a copy of the repository with pictures made here.
"""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.pipeline.test_pipeline import LEFT_OUT, ROOT, Project

PRETRAIN, EVALUATE = ((sys.executable, "-m", f"stages.{stage}", "image", "byol") for stage in ("pretrain", "evaluate"))
SEED = "byol, seed 0: "  # before what a seed's own process says
WEIGHTS = "models/image/byol/0/encoder.safetensors"


def small(params: dict) -> None:
    params["seeds"] = [0]
    params["benchmark"] = {"image": params["benchmark"]["image"] | {"data": "image_folder", "methods": ["byol"]}}
    params["benchmark"]["image"]["sweeps"] = []
    params["datasets"]["image_folder"] = {"root": "pictures", "size": 16}
    params["training"]["laptop"] |= {"epochs": 15, "batch_size": 32}
    params["encoders"]["small_resnet"] |= {"width": 8, "blocks": [1, 1]}
    params["evaluation"] |= {"strengths": [1.0e-2, 1.0e-1], "neighbours": [5], "low_label": None, "finetune": None}
    params["evaluation"]["transfer"] = None


class Untracked(Project):
    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"MLFLOW_TRACKING_URI": "off"}


def prepare(folder: Path) -> Untracked:
    """A copy of the repository there, its data ready to be pretrained on; a checkpoint is made at every point."""
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    project = Untracked(folder)
    project.change(small)
    project.checkpoint_every(0.0)
    random = np.random.default_rng(0)
    for number in range(120):
        path = folder / f"pictures/{'even' if number % 2 == 0 else 'odd'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    project.run(sys.executable, "-m", "stages.plan")
    project.run(sys.executable, "-m", "stages.prepare", "image")
    return project


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Untracked:
    return prepare(tmp_path_factory.mktemp("faults") / "copy")


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory) -> bytes:
    """The weights of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "copy"
    shutil.copytree(prepared.folder, folder)
    Untracked(folder).run(*PRETRAIN)
    return (folder / WEIGHTS).read_bytes()


@pytest.fixture
def project(prepared, tmp_path) -> Untracked:
    """Everything is ready to be pretrained."""
    shutil.copytree(prepared.folder, tmp_path / "copy")
    return Untracked(tmp_path / "copy")


@contextmanager
def begun(project: Project) -> Iterator[subprocess.Popen]:
    """The stage, from its first checkpoint on. The block has to end it."""
    process = subprocess.Popen(
        PRETRAIN, cwd=project.folder, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while not list(project.folder.glob(".scratch/pretrain/*/*/*/*/checkpoint.pt")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def complaint(said: str) -> str:
    """The only line of stderr that is no progress."""
    [line] = [line for line in said.splitlines() if not line.startswith(("pretrain image byol: ", "byol 0: ok"))]
    return line


def left_over(project: Project) -> list[Path]:
    return [path for path in project.folder.rglob("*.partial") if path.is_file()]


def ends_as_undisturbed(project: Project, undisturbed: bytes, resumed: bool = True) -> None:
    assert ("resumed at step" in project.run(*PRETRAIN)) == resumed
    assert (project.folder / WEIGHTS).read_bytes() == undisturbed
    assert not list(project.folder.glob(".scratch/**/checkpoint.pt"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_order_it_goes_on(how, project, undisturbed):
    with begun(project) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint(said) == "stopped; started again, it goes on"
    assert left_over(project) == []
    assert not any(child.is_running() for child in children)
    ends_as_undisturbed(project, undisturbed)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own there, in memory; the test is skipped where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("may mount no file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("place", "size"), [(".scratch", "512k"), ("metrics", "4k")])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(place, size, project, undisturbed):
    with mounted(project.folder / place, f"size={size}"):
        said = project.run(*PRETRAIN, fails=True)
        assert complaint(said).startswith(f"error: {SEED if place == '.scratch' else ''}the disk of ")
        assert said.rstrip().endswith(f"{place} is full; free some of it and start again: it goes on")
        assert left_over(project) == []
    ends_as_undisturbed(project, undisturbed, resumed=False)  # nothing is there, or all of it


@pytest.mark.parametrize("place", [".scratch", "models"])
def test_a_folder_that_may_not_be_written_to_is_named(place, project, undisturbed):
    with mounted(project.folder / place, "ro"):
        said = project.run(*PRETRAIN, fails=True)
        assert complaint(said).startswith(f"error: {SEED if place == '.scratch' else ''}{place}/")
        assert said.rstrip().endswith("may not be written to (Read-only file system)")
    ends_as_undisturbed(project, undisturbed, resumed=False)


def test_data_that_vanish_on_the_way_are_asked_for_and_the_run_goes_on(project, undisturbed):
    data, away = project.folder / "data", project.folder / "away"
    with begun(project) as process:
        data.rename(away)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert complaint(said).startswith(f"error: {SEED}data/image")
    away.rename(data)
    ends_as_undisturbed(project, undisturbed)


@pytest.mark.parametrize("kind", ["corrupt", "locked"])
def test_a_store_that_cannot_be_used_costs_one_warning(kind, project, undisturbed):
    project, store = Project(project.folder), project.folder / "mlflow.db"
    project.run(*PRETRAIN)
    if kind == "corrupt":
        store.write_bytes(b"SQLite format 3\0" + b"not whole" * 100)
        said = project.run(*EVALUATE)
    else:
        with closing(sqlite3.connect(store)) as other:
            other.execute("BEGIN EXCLUSIVE")
            said = project.run(*EVALUATE)
    assert said.count("warning: ") == 1
    assert "results are not affected" in said
    assert "stages.track" in said
    assert "Traceback" not in said
    assert (project.folder / WEIGHTS).read_bytes() == undisturbed
    assert (project.folder / "metrics/image/byol.json").exists()
