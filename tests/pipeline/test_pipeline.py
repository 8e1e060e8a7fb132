"""The pipeline itself, run by DVC at a tiny budget in a temporary copy: what runs, what does not run again, and why."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".scratch", "__pycache__", "*.egg-info", "data", "models", "metrics", "downloads", "cache", "tmp",
    "dvc.lock", "mlflow.db*", "mlartifacts",
)  # fmt: skip


ENTRIES = {
    "image": ["untrained", "simclr", "byol", "supervised"],
    "text": ["untrained", "gpt"],
    "image_text": ["untrained", "clip"],
    "video_audio": ["untrained", "avc"],
}


def tiny(params: dict) -> None:
    """Ten entries, two seeds, a few steps: every stage of the pipeline in about a minute."""
    params["seeds"] = [0, 1]
    for modality, entries in ENTRIES.items():
        params["benchmark"][modality]["methods"] = entries
    params["datasets"]["emoji"] = params["datasets"]["emoji_names"] = {"size": 16}
    params["datasets"]["atari"] = {"games": ["pong", "breakout"], "train": 24, "validation": 8, "test": 8}
    params["training"]["laptop"] |= {"epochs": 0.1, "batch_size": 64}
    params["training"]["laptop_text"] |= {"epochs": 0.02}
    params["training"]["laptop_image_text"] |= {"epochs": 0.1}
    params["training"]["laptop_av"] |= {"epochs": 1, "batch_size": 16}
    params["encoders"]["small_resnet"] |= {"width": 8, "blocks": [1, 1]}
    params["evaluation"] |= {"strengths": [1.0e-2, 1.0e-1], "neighbours": [5, 20]}
    params["evaluation"]["low_label"] |= {"per_class": [], "draws": 1, "strengths": [1.0e-1]}
    params["evaluation"]["finetune"] |= {"epochs": 1, "batch_size": 512}
    params["evaluation"]["transfer"] |= {"strengths": [1.0e-1]}
    params["sweeps"]["simclr"] |= {"trials": 3, "epochs": 0.05}
    params["sweeps"]["simclr"]["space"]["batch_size"] = {"choices": [32, 64]}


class Project:
    """A copy of the repository, and its commands."""

    def __init__(self, folder: Path):
        self.folder = folder

    def change(self, edit: Callable[[dict], None]) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        edit(params)
        path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def checkpoint_every(self, seconds: float) -> None:
        """Has its pretrainings save a checkpoint after so long."""
        self.replace("stages/pretrain.py", "CHECKPOINT_SECONDS = 30.0", f"CHECKPOINT_SECONDS = {seconds}")

    def linger(self, seconds: float) -> None:
        """Has its recorder wait for so long for another stage."""
        self.replace("stages/recorder.py", "LINGER = 120.0", f"LINGER = {seconds}")

    def replace(self, name: str, usual: str, other: str) -> None:
        """Changes a line of its code."""
        file = self.folder / name
        text = file.read_text(encoding="utf-8")
        assert text.count(usual) == 1
        file.write_text(text.replace(usual, other), encoding="utf-8")

    def settle(self) -> None:
        """Waits for what outlives its stages: the writing of their runs into MLflow's store."""
        until = time.monotonic() + 120
        while left := list((self.folder / ".scratch/tracking").glob("*/*.calls")):
            assert time.monotonic() < until, left
            time.sleep(0.2)

    @property
    def environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",  # as much as two at a time have on two cores
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        return environment

    def run(self, *command: str, fails: bool = False) -> str:
        ended = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        output = ended.stdout + ended.stderr
        assert (ended.returncode != 0) == fails, output
        return output

    def stale(self) -> set[str]:
        """The stages that DVC would run, once the plan is made anew."""
        self.run("dvc", "repro", "--quiet", "plan")
        return set(json.loads(self.run("dvc", "status", "--json"))) - {"report"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The whole pipeline, run once from nothing, two stages at a time."""
    folder = tmp_path_factory.mktemp("pipeline") / "copy"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    project = Project(folder)
    project.run("git", "init", "--quiet")
    project.change(tiny)
    project.linger(5.0)
    said = project.run(sys.executable, "-m", "stages.parallel", "--workers", "2", "--threads", "1")
    assert f"{sum(2 * len(entries) for entries in ENTRIES.values())} runs to make, 2 at a time" in said
    project.settle()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished pipeline, to change."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return Project(folder)


def stages_of(kind: str, entries: list[str], seeds: list[int], modality: str = "image") -> set[str]:
    return {f"{kind}-{modality}@{entry}-{seed}" for entry in entries for seed in seeds}


def all_of(kind: str, seeds: list[int]) -> set[str]:
    return set().union(*(stages_of(kind, entries, seeds, modality) for modality, entries in ENTRIES.items()))


def test_it_ends_with_a_row_for_every_entry(finished):
    results = (finished.folder / "reports/results.csv").read_text(encoding="utf-8")
    page = (finished.folder / "reports/index.html").read_text(encoding="utf-8")
    for modality, entry in ((modality, entry) for modality, entries in ENTRIES.items() for entry in entries):
        assert f"{modality},{entry}," in results
        assert entry in page
        path = finished.folder / f"metrics/{modality}/{entry}/1/scores.json"
        scores = json.loads(path.read_text(encoding="utf-8"))
        assert scores["status"] in ("ok", "collapsed")
        assert 0 < scores["linear"] <= 100
        assert scores["linear"] < 100 or modality == "video_audio"  # two games can be told apart by a few sounds
    trials = (finished.folder / "reports/sweeps/image/simclr/trials.csv").read_text(encoding="utf-8")
    assert len(trials.splitlines()) == 1 + 3


def test_a_second_run_does_nothing(finished):
    assert "up to date" in finished.run("dvc", "repro")


def test_it_is_reproduced_byte_by_byte(finished, project):
    """Weights that are trained again, without any cache, are the same."""
    weights = "models/image/byol/1/encoder.safetensors"
    before = (finished.folder / weights).read_bytes()
    project.run("dvc", "repro", "--force", "--single-item", "--no-run-cache", "pretrain-image@byol-1")
    assert (project.folder / weights).read_bytes() == before


def test_one_stage_after_another_ends_where_several_at_a_time_did(finished, project):
    """Without the weights and metrics of one modality, and without what DVC remembers of them, they are made again."""
    lock = (project.folder / "dvc.lock").read_text(encoding="utf-8")
    for name in ("models/text", "metrics/text", ".dvc/cache/runs"):
        shutil.rmtree(project.folder / name)
    for stage, of in yaml.safe_load(lock)["stages"].items():
        if stage.startswith(("pretrain-text", "evaluate-text")):
            for out in of["outs"]:
                (project.folder / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]).unlink(missing_ok=True)
    said = project.run("dvc", "repro")
    made = [
        line for line in said.splitlines() if line.startswith(("> python -m stages.pretrain", "> python -m stages.e"))
    ]
    assert len(made) == 2 * 2 * len(ENTRIES["text"])
    for pattern in ("models/**/*.safetensors", "metrics/**/scores.json", "reports/leaderboard.csv"):
        files = [path.relative_to(finished.folder) for path in finished.folder.glob(pattern)]
        assert files
        for file in files:
            assert (project.folder / file).read_bytes() == (finished.folder / file).read_bytes(), file
    before, after = (yaml.safe_load(text)["stages"] for text in (lock, (project.folder / "dvc.lock").read_text()))
    assert after.keys() == before.keys()
    for name, stage in after.items():
        outs, others = (
            {out["path"]: out["md5"] for out in of["outs"] if out["path"].startswith(("models/", "data/"))}
            for of in (stage, before[name])
        )
        assert outs == others
        assert stage.get("params") == before[name].get("params")


def test_a_colleague_has_what_was_pushed_without_computing(project, tmp_path):
    """By way of a DVC remote, here a folder, and of git."""
    for command in ("init --quiet", "add .", "-c user.name=a -c user.email=a@b.c commit --quiet -m run"):
        project.run("git", *command.split())
    project.run("dvc", "remote", "add", "--local", "shared", str(tmp_path / "shared"))
    project.run("dvc", "push", "--remote", "shared", "--run-cache")
    colleague = Project(tmp_path / "colleague")
    project.run("git", "clone", "--quiet", str(project.folder), str(colleague.folder))
    assert not (colleague.folder / "models").exists()
    colleague.run("dvc", "remote", "add", "--local", "shared", str(tmp_path / "shared"))
    assert "Running stage" not in colleague.run("dvc", "repro", "--pull", "--allow-missing")
    colleague.run("dvc", "pull", "--remote", "shared")
    assert "Running stage" not in colleague.run("dvc", "repro")
    for path in project.folder.glob("models/**/*.safetensors"):
        assert (colleague.folder / path.relative_to(project.folder)).read_bytes() == path.read_bytes()


def test_damaged_weights_are_told_and_made_anew(finished, project):
    """By their checksum in dvc.lock: nothing is measured on them."""
    path = project.folder / "models/image/byol/1/encoder.safetensors"
    whole = path.read_bytes()
    path.unlink()  # it may be a link into the cache
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert project.stale() == stages_of("pretrain", ["byol"], [1]) | stages_of("evaluate", ["byol"], [1])
    project.run("dvc", "repro", "evaluate-image@byol-1")
    assert path.read_bytes() == whole
    place = "metrics/image/byol/1/scores.json"
    assert (project.folder / place).read_bytes() == (finished.folder / place).read_bytes()


def test_two_at_once_are_refused_or_end_as_one(project):
    """Of two `dvc repro` at the same time one does the work, and the other waits for nothing and says why."""
    project.change(lambda params: params["methods"].update(byol={"tau": 0.5}))
    project.run("dvc", "repro", "plan")
    command = ["dvc", "repro", "--force", "--single-item", "pretrain-image@byol-1"]
    heard = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, cwd=project.folder, env=project.environment, **heard) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, said
    for code, output in zip(codes, said, strict=True):
        assert code == 0 or "lock" in output or "another process" in output, output
        assert "Traceback" not in output
    assert "pretrain-image@byol-1" not in project.stale()


def test_a_hyper_parameter_reruns_its_method_alone(project):
    project.change(lambda params: params["methods"].update(byol={"tau": 0.5}))
    assert project.stale() == stages_of("pretrain", ["byol"], [0, 1])


def test_two_processes_share_a_run_where_the_profile_says_so(finished, project):
    project.change(lambda params: params["training"]["laptop"].update(processes=2))
    project.run("dvc", "repro", "plan")
    project.run("dvc", "repro", "--single-item", "pretrain-image@byol-1")
    alone, shared = (
        json.loads((p.folder / "metrics/image/byol/1/pretrain.json").read_text()) for p in (finished, project)
    )
    assert shared["status"] == "ok"
    assert shared["samples"] == alone["samples"]
    assert len(shared["curve"]) == len(alone["curve"])
    assert shared["loss"] != alone["loss"]  # the second process drew views of its own
    assert not list((project.folder / ".scratch").glob("pretrain-*"))


def test_a_seed_runs_that_seed_alone(project):
    project.change(lambda params: params.update(seeds=[0, 1, 2]))
    assert project.stale() == all_of("pretrain", [2]) | all_of("evaluate", [2])


def test_the_protocol_reruns_evaluations_alone(project):
    project.change(lambda params: params["evaluation"].update(neighbours=[3]))
    assert project.stale() == all_of("evaluate", [0, 1]) | {"sweep-image@simclr"}


def test_a_comment_in_a_shared_file_reruns_nothing(project):
    for name in ("ssl_methods/parts.py", "ssl_methods/encoders.py", "stages/pretrain.py", "stages/evaluate.py"):
        path = project.folder / name
        path.write_text("# a comment\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert project.stale() == set()


def test_a_shared_helper_reruns_the_methods_that_use_it(project):
    path = project.folder / "ssl_methods/parts.py"
    text = path.read_text(encoding="utf-8")
    assert "1 - momentum" in text
    path.write_text(text.replace("1 - momentum)", "(1 - momentum) * 1.0)"), encoding="utf-8")
    assert project.stale() == stages_of("pretrain", ["byol"], [0, 1])


def test_a_method_is_one_file_and_one_block(project):
    """And a line in its table. Nothing else is edited, and it gets its row."""
    source = (project.folder / "ssl_methods/contrastive/simclr.py").read_text(encoding="utf-8")
    (project.folder / "ssl_methods/contrastive/newcomer.py").write_text(source, encoding="utf-8")
    project.change(lambda params: params["methods"].update(newcomer={"temperature": 0.3}))
    project.change(lambda params: params["benchmark"]["image"]["methods"].append("newcomer"))
    new = stages_of("pretrain", ["newcomer"], [0, 1]) | stages_of("evaluate", ["newcomer"], [0, 1])
    assert project.stale() == new
    project.run("dvc", "repro")
    assert "newcomer" in (project.folder / "reports/index.html").read_text(encoding="utf-8")


def test_a_mistake_stops_it_before_any_training(project):
    project.change(lambda params: params["methods"].update(byol={"taw": 0.5}))
    output = project.run("dvc", "repro", fails=True)
    assert "error: methods.byol.taw: unknown setting 'taw'; did you mean 'tau'?" in output
    assert "Traceback" not in output
    assert "pretrain-image" not in output


def test_mlflow_has_a_run_of_every_kind(finished):
    import sqlite3

    with sqlite3.connect(finished.folder / "mlflow.db") as store:
        kinds = dict(store.execute("select value, count(*) from tags where key = 'kind' group by value").fetchall())
    store.close()
    assert kinds == {"pretrain": 20, "evaluate": 20, "sweep": 3}


def test_what_is_committed_is_true_of_the_code():
    """dvc.lock, the metrics and the report in git are those of this very code and params.yaml."""
    if not (ROOT / "dvc.lock").exists():
        pytest.skip("nothing has been run here yet")
    command = [str(Path(sys.executable).parent / "dvc"), "repro", "--allow-missing", "--dry"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Running stage" not in ended.stdout + ended.stderr
