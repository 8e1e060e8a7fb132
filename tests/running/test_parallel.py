"""Several stages at a time, here or on a cluster, with a program in DVC's place that notes what it was asked for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.common.files import write_json
from stages.common.settings import InputError, read
from stages.running import cluster, parallel

ROOT = Path(__file__).parents[2]
FAKE = """
import os, sys, time
note = lambda what: open("notes", "a").write(f"{what} {stage} {os.environ['OMP_NUM_THREADS']} {os.getpid()}\\n")
for stage in sys.argv[sys.argv.index("--single-item") + 1:]:
    note("begin")
    if stage.startswith("slow"):
        child = __import__("subprocess").Popen(["sleep", "600"])
        open("child", "w").write(str(child.pid))
        child.wait()
    time.sleep(0.2)
    note("end")
    if stage.startswith("doomed"):
        os.kill(os.getppid(), 9)
        sys.exit(1)
    if stage.startswith("bad"):
        print(f"{stage} is broken")
        sys.exit(3)
"""


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """What was noted so far: a function that returns (begin or end, stage, threads)."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "DVC", (sys.executable, "fake.py"))
    return lambda: [tuple(line.split()[:3]) for line in Path("notes").read_text().splitlines()]


def test_so_many_work_at_a_time_and_a_run_is_evaluated_after_it_is_trained(notes):
    names = [[f"pretrain{i}", f"evaluate{i}"] for i in range(4)]
    assert parallel.Workers(2, threads=3, gpus=0).work(names) == {}
    at_once, most, ended = 0, 0, []
    for what, stage, threads in notes():
        assert threads == "3"
        at_once += 1 if what == "begin" else -1
        most = max(most, at_once)
        if what == "end":
            ended.append(stage)
        elif stage.startswith("evaluate"):
            assert stage.replace("evaluate", "pretrain") in ended
    assert most == 2
    assert sorted(ended) == sorted(stage for job in names for stage in job)


def test_a_failure_stops_its_own_run_alone_and_is_told(notes):
    failed = parallel.Workers(2, threads=1, gpus=0).work([["bad", "after"], ["good", "better"]])
    assert list(failed) == ["after"]
    assert "bad is broken" in failed["after"]
    assert {stage for _, stage, _ in notes()} == {"bad", "good", "better"}


def test_each_worker_has_a_gpu_of_its_own():
    slots = parallel.Workers(3, threads=1, gpus=2).slots
    assert [slots.get()["CUDA_VISIBLE_DEVICES"] for _ in range(3)] == ["0", "1", "0"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_leaves_no_process_behind_and_begins_nothing_more(notes, how):
    work = "from stages import parallel, settings; import sys; parallel.DVC = (sys.executable, 'fake.py'); "
    work += "parallel.Workers(1, 1, 0).work([['slow1', 'never'], ['never']])"
    process = subprocess.Popen([sys.executable, "-c", work], env={**os.environ, "PYTHONPATH": str(ROOT)})
    until = time.monotonic() + 60
    while not Path("child").exists() or not Path("child").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(timeout=60) != 0
    child, until = int(Path("child").read_text()), time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert {stage for _, stage, _ in notes()} == {"slow1"}


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_are_what_is_stale_the_longest_first(tmp_path, monkeypatch):
    settings = read(ROOT / "params.yaml")
    modality = settings.benchmark["image"].model_copy(update={"methods": ["pca", "mae", "simclr"]})
    settings = settings.model_copy(update={"benchmark": {"image": modality}, "seeds": [0]})
    monkeypatch.chdir(tmp_path)
    for entry, seconds in {"pca": (1.0, 10.0), "mae": (20.0, 9.0)}.items():
        for stage, took in zip(("pretrain", "evaluate"), seconds, strict=True):
            write_json(tmp_path / f"metrics/image/{entry}/0/{stage}.json", {"seconds": took})
    names = {kind: {m: f"{kind}-image@{m}-0" for m in modality.methods} for kind in ("pretrain", "evaluate")}
    stale = {names["pretrain"]["pca"], names["evaluate"]["mae"], names["pretrain"]["simclr"], "report"}
    assert parallel.jobs(settings, stale) == [
        [names["pretrain"]["simclr"], names["evaluate"]["simclr"]],  # it never ran
        [names["pretrain"]["pca"], names["evaluate"]["pca"]],
        [names["evaluate"]["mae"]],  # what is not stale takes no time
    ]


def test_stages_that_depend_on_something_else_by_now_are_forgotten_and_no_others(tmp_path):
    lock = tmp_path / "dvc.lock"
    kept = "schema: '2.0'\nstages:\n  a:\n    cmd: a\n    params:\n      keys.json:\n        a: '123456789e12'\n"
    lock.write_text(kept + "  b:\n    cmd: b\n  c:\n    cmd: c\n")
    parallel.forget(
        {"b": [{"changed deps": {"data": "modified"}}, "changed command"], "c": [{"changed outs": {}}]}, lock
    )
    assert lock.read_text() == kept + "  c:\n    cmd: c\n"
    parallel.forget({"d": [{"changed deps": {}}]}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# A cluster: submitit's own executor for this machine


@pytest.fixture
def local(notes, tmp_path, monkeypatch):
    """A cluster of one machine; its jobs start as `python -m dvc`, which in this folder is the program."""
    (tmp_path / "fake.py").rename(tmp_path / "dvc.py")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(cluster, "POLL", 0.1)
    return cluster.Cluster("local", {"slurm_array_parallelism": 2})


def test_jobs_of_a_cluster_make_all_runs_and_tell_what_failed(local, notes):
    failed = local.work([["bad", "after"], ["pretrain", "evaluate"]])
    assert list(failed) == ["after"]
    assert "bad is broken" in failed["after"]
    assert {stage for _, stage, _ in notes()} == {"bad", "pretrain", "evaluate"}
    assert [stage for what, stage, _ in notes() if what == "end" and stage != "bad"] == ["pretrain", "evaluate"]


def test_a_job_that_dies_costs_its_own_run_alone_and_what_it_left_for_mlflow_is_written(local, notes):
    left = Path(".scratch/tracking/node17/1-1.calls")  # here nothing of a run, so that MLflow is not asked
    left.parent.mkdir(parents=True)
    left.write_text("{\n")
    failed = local.work([["doomed", "never"], ["pretrain", "evaluate"]])
    assert not left.exists()
    assert list(failed) == ["never"]
    assert {stage for _, stage, _ in notes()} == {"doomed", "pretrain", "evaluate"}


def test_a_job_that_loses_its_machine_is_queued_again():
    again = cluster.Run().checkpoint(["pretrain", "evaluate"])
    assert isinstance(again.function, cluster.Run)
    assert again.args == (["pretrain", "evaluate"],)


@pytest.mark.parametrize(
    ("kind", "asked", "says"),
    [
        ("slurm", {}, "srun"),
        ("pbs", {}, "any executor named pbs"),
        ("local", {"gpus": 1}, "gpus"),
        ("local", {"timeout_min": "long"}, "timeout_min"),
    ],
)
def test_what_the_cluster_does_not_know_is_one_clear_line(kind, asked, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=rf"^submitit: .*{says}") as told:
        cluster.Cluster(kind, asked)
    assert "\n" not in str(told.value)
