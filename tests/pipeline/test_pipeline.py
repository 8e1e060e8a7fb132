"""The pipeline itself, run by DVC at a tiny budget in a temporary copy: what runs, what does not run again, and why."""

import json
import os
import shutil
import subprocess
import sys
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
        file, usual = self.folder / "stages/training/loop.py", "CHECKPOINT_SECONDS = 30.0"
        text = file.read_text(encoding="utf-8")
        assert text.count(usual) == 1
        file.write_text(text.replace(usual, f"CHECKPOINT_SECONDS = {seconds}"), encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "2",
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
    """The whole pipeline, run once from nothing."""
    folder = tmp_path_factory.mktemp("pipeline") / "copy"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    project = Project(folder)
    project.run("git", "init", "--quiet")
    project.change(tiny)
    project.run("dvc", "repro")
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished pipeline, to change."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return Project(folder)


def stages_of(kind: str, *entries: str, modality: str = "image") -> set[str]:
    return {f"{kind}-{modality}@{entry}" for entry in entries}


def all_of(kind: str) -> set[str]:
    return set().union(*(stages_of(kind, *entries, modality=modality) for modality, entries in ENTRIES.items()))


def test_it_ends_with_a_row_for_every_entry(finished):
    results = (finished.folder / "reports/results.csv").read_text(encoding="utf-8")
    page = (finished.folder / "reports/index.html").read_text(encoding="utf-8")
    for modality, entry in ((modality, entry) for modality, entries in ENTRIES.items() for entry in entries):
        assert f"{modality},{entry}," in results
        assert entry in page
        path = finished.folder / f"metrics/{modality}/{entry}/evaluate/1.json"
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
    shutil.rmtree(project.folder / ".scratch")
    project.run("dvc", "repro", "--force", "--single-item", "--no-run-cache", "pretrain-image@byol")
    assert (project.folder / weights).read_bytes() == before


def test_metrics_are_a_table_that_people_can_read(finished):
    """A row for each entry, and few columns."""
    shown = finished.run("dvc", "metrics", "show", "--md")
    head, _, *rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["Path", "knn", "linear", "status"]
    assert len(rows) == sum(map(len, ENTRIES.values()))
    assert "metrics/image/simclr.json" in shown


def test_what_is_lost_is_made_again_as_it_was(finished, project):
    """Without the weights and metrics of one modality, and without all that DVC and the stages remember of them."""
    lock = (project.folder / "dvc.lock").read_text(encoding="utf-8")
    for name in ("models/text", "metrics/text", ".dvc/cache/runs", ".scratch"):
        shutil.rmtree(project.folder / name)
    for stage, of in yaml.safe_load(lock)["stages"].items():
        if stage.startswith(("pretrain-text", "evaluate-text")):
            for out in of["outs"]:
                (project.folder / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]).unlink(missing_ok=True)
    said = project.run("dvc", "repro")
    made = [
        line for line in said.splitlines() if line.startswith(("> python -m stages.pretrain", "> python -m stages.e"))
    ]
    assert len(made) == 2 * len(ENTRIES["text"])
    for pattern in ("models/**/*.safetensors", "metrics/*/*.json", "reports/leaderboard.csv"):
        files = [path.relative_to(finished.folder) for path in finished.folder.glob(pattern)]
        assert files
        for file in files:
            assert (project.folder / file).read_bytes() == (finished.folder / file).read_bytes(), file


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
    assert project.stale() == stages_of("pretrain", "byol") | stages_of("evaluate", "byol")
    project.run("dvc", "repro", "evaluate-image@byol")
    assert path.read_bytes() == whole
    place = "metrics/image/byol.json"
    assert (project.folder / place).read_bytes() == (finished.folder / place).read_bytes()


def test_two_at_once_are_refused_or_end_as_one(project):
    """Of two `dvc repro` at the same time one does the work, and the other waits for nothing and says why."""
    project.change(lambda params: params["methods"].update(byol={"tau": 0.5}))
    project.run("dvc", "repro", "plan")
    command = ["dvc", "repro", "--force", "--single-item", "pretrain-image@byol"]
    heard = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, cwd=project.folder, env=project.environment, **heard) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, said
    for code, output in zip(codes, said, strict=True):
        assert code == 0 or "lock" in output or "another process" in output, output
        assert "Traceback" not in output
    assert "pretrain-image@byol" not in project.stale()


def test_a_hyper_parameter_reruns_its_method_alone(project):
    project.change(lambda params: params["methods"].update(byol={"tau": 0.5}))
    assert project.stale() == stages_of("pretrain", "byol")


def test_two_processes_share_a_run_where_the_profile_says_so(finished, project):
    project.change(lambda params: params["training"]["laptop"].update(processes=2))
    project.run("dvc", "repro", "plan")
    project.run("dvc", "repro", "--single-item", "pretrain-image@byol")
    alone, shared = (
        json.loads((p.folder / "metrics/image/byol/pretrain/1.json").read_text()) for p in (finished, project)
    )
    assert shared["status"] == "ok"
    assert shared["samples"] == alone["samples"]
    assert len(shared["curve"]) == len(alone["curve"])
    assert shared["loss"] != alone["loss"]  # the second process drew views of its own
    assert not list((project.folder / ".scratch").rglob("checkpoint.pt"))


def test_another_seed_runs_that_seed_alone(finished, project):
    project.change(lambda params: params.update(seeds=[0, 1, 2]))
    assert project.stale() == all_of("pretrain") | all_of("evaluate")
    said = project.run("dvc", "repro", "evaluate-image@byol")
    assert said.count("byol: 2 of 3 seeds are kept from before") == 2
    assert [line for line in said.splitlines() if line.startswith("byol 2: ok")]
    assert not [line for line in said.splitlines() if line.startswith(("byol 0:", "byol 1:"))]
    weights = "models/image/byol/1/encoder.safetensors"
    assert (project.folder / weights).read_bytes() == (finished.folder / weights).read_bytes()


def test_the_protocol_reruns_evaluations_alone(project):
    project.change(lambda params: params["evaluation"].update(neighbours=[3]))
    assert project.stale() == all_of("evaluate") | {"sweep-image@simclr"}


def test_a_comment_in_a_shared_file_reruns_nothing(project):
    for name in ("ssl_methods/parts/losses.py", "stages/training/loop.py", "stages/pretrain.py", "stages/evaluate.py"):
        path = project.folder / name
        path.write_text("# a comment\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert project.stale() == set()


def test_a_shared_helper_reruns_the_methods_that_use_it(project):
    path = project.folder / "ssl_methods/parts/teachers.py"
    text = path.read_text(encoding="utf-8")
    assert "1 - momentum" in text
    path.write_text(text.replace("1 - momentum)", "(1 - momentum) * 1.0)"), encoding="utf-8")
    assert project.stale() == stages_of("pretrain", "byol")


def test_a_method_is_one_file_and_one_block(project):
    """And a line in its table. Nothing else is edited, and it gets its row."""
    source = (project.folder / "ssl_methods/contrastive/simclr.py").read_text(encoding="utf-8")
    (project.folder / "ssl_methods/contrastive/newcomer.py").write_text(source, encoding="utf-8")
    project.change(lambda params: params["methods"].update(newcomer={"temperature": 0.3}))
    project.change(lambda params: params["benchmark"]["image"]["methods"].append("newcomer"))
    new = stages_of("pretrain", "newcomer") | stages_of("evaluate", "newcomer")
    assert project.stale() == new
    project.run("dvc", "repro")
    assert "newcomer" in (project.folder / "reports/index.html").read_text(encoding="utf-8")


def test_a_mistake_stops_it_before_any_training(project):
    project.change(lambda params: params["methods"].update(byol={"taw": 0.5}))
    output = project.run("dvc", "repro", fails=True)
    assert "error: methods.byol.taw: unknown setting 'taw'; did you mean 'tau'?" in output
    assert "Traceback" not in output
    assert "pretrain-image" not in output


@pytest.mark.parametrize(
    ("left", "seeds"),
    [
        ({"text": ["untrained"]}, [0]),  # a modality, an entry, a seed
        ({"image": ["byol", "untrained"], "image_text": ["clip"]}, [0, 1]),
    ],
)
def test_what_is_left_out_is_not_prepared_run_reported_or_mentioned(project, left, seeds):
    def leave_out(params: dict) -> None:
        params["seeds"] = seeds
        params["benchmark"]["image"]["sweeps"] = []
        for modality, block in params["benchmark"].items():
            block["methods"] = left.get(modality, [])

    project.change(leave_out)
    for name in ("data", "models", "metrics", "mlflow.db", "dvc.lock", "prepare/dvc.lock"):
        path = project.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = project.run("dvc", "repro")
    assert {path.name for path in (project.folder / "data").iterdir() if path.is_dir()} == set(left)
    assert {path.name for path in (project.folder / "metrics").iterdir()} == set(left)
    assert "sweep" not in said
    page = (project.folder / "reports/index.html").read_text(encoding="utf-8")
    text = (project.folder / "reports/README.md").read_text(encoding="utf-8")
    for modality in set(ENTRIES) - set(left):
        assert f"{modality} " not in said
        assert f'id="{modality}"' not in page
    for entry in {entry for entries in ENTRIES.values() for entry in entries} - set().union(*left.values()):
        assert f"| [{entry}]" not in text
    assert all(f"| [{entry}]" in text for entries in left.values() for entry in entries)
    assert "up to date" in project.run("dvc", "repro")


def test_a_sweep_of_an_entry_that_is_left_out_is_told(project):
    project.change(lambda params: params["benchmark"]["image"].update(methods=[]))
    said = project.run("dvc", "repro", fails=True)
    assert "error: benchmark.image.sweeps: simclr is not among its methods; take it out, or put it there too" in said


def test_mlflow_has_a_run_of_every_kind(finished):
    import sqlite3

    with sqlite3.connect(finished.folder / "mlflow.db") as store:
        kinds = dict(store.execute("select value, count(*) from tags where key = 'kind' group by value").fetchall())
    store.close()
    assert kinds == {"entry": 10, "seed": 20, "study": 1, "trial": 3}


def test_what_is_committed_is_true_of_the_code():
    """dvc.lock, the metrics and the report in git are those of this very code and params.yaml."""
    if not (ROOT / "dvc.lock").exists():
        pytest.skip("nothing has been run here yet")
    command = [str(Path(sys.executable).parent / "dvc"), "repro", "--allow-missing", "--dry"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Running stage" not in ended.stdout + ended.stderr
