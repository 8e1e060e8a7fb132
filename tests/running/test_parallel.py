"""Several stages at a time, here or on a cluster, with a program in DVC's place that notes what it was asked for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from stages.common.files import write_json
from stages.common.settings import InputError, read
from stages.running import cluster, parallel
from stages.tracking import runs

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
    assert parallel.work(names, parallel.shares(2, cores=6, gpus=[])) == {}
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
    failed = parallel.work([["bad", "after"], ["good", "better"]], parallel.shares(2, cores=2, gpus=[]))
    assert list(failed) == ["after"]
    assert "bad is broken" in failed["after"]
    assert {stage for _, stage, _ in notes()} == {"bad", "good", "better"}


@pytest.mark.parametrize(
    ("workers", "gpus", "expected"),
    [
        (2, ["0", "1", "2", "3"], ["0,2", "1,3"]),
        (3, ["4", "7"], ["4", "7", "4"]),
        (1, ["GPU-5c1", "GPU-8f2"], ["GPU-5c1,GPU-8f2"]),
    ],
)
def test_each_worker_has_its_share_of_the_gpus_and_the_cores(workers, gpus, expected):
    shares = parallel.shares(workers, cores=8, gpus=gpus)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == expected
    assert {share["OMP_NUM_THREADS"] for share in shares} == {str(8 // workers)}


@pytest.mark.parametrize(
    ("asked", "cores", "gpus", "expected"),
    [
        ([], 2, 0, 1),  # as `dvc repro`
        ([], 16, 0, 5),
        ([], 16, 2, 1),  # fewer GPUs than seeds
        ([], 16, 8, 2),
        (["--workers", "4"], 2, 0, 4),
    ],
)
def test_by_default_each_seed_has_a_gpu_or_a_core(asked, cores, gpus, expected, monkeypatch):
    told = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["parallel", *asked])
    monkeypatch.setattr(parallel, "cores", lambda: cores)
    monkeypatch.setattr(parallel, "visible_gpus", lambda: [str(gpu) for gpu in range(gpus)])
    monkeypatch.setattr(parallel, "reproduce", lambda work, how: told.append(how))
    parallel.main()
    assert told == [f"{expected} at a time"]


def test_gpus_that_are_hidden_stay_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert parallel.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert parallel.visible_gpus() == ["4", "7"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_leaves_no_process_behind_and_begins_nothing_more(notes, how):
    work = "from stages.running import parallel; import sys; parallel.DVC = (sys.executable, 'fake.py'); "
    work += "jobs, shares = [['slow1', 'never'], ['never']], parallel.shares(1, 1, []); "
    work += "parallel.command(lambda: parallel.work(jobs, shares))"
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
    modality = settings.benchmark["image"].model_copy(update={"methods": ["pca", "mae", "byol", "simclr", "raw"]})
    settings = settings.model_copy(update={"benchmark": {"image": modality}})
    monkeypatch.chdir(tmp_path)
    for entry, seconds in {"pca": (1.0, 2.0), "mae": (20.0, 9.0), "byol": (7.0, 7.0), "raw": (99.0,)}.items():
        for seed, took in enumerate(seconds):
            write_json(tmp_path / f"metrics/image/{entry}/pretrain/{seed}.json", {"seconds": took})
    stale = {f"pretrain-image@{entry}" for entry in ("pca", "byol", "simclr")} | {"evaluate-image@mae", "report"}
    assert parallel.jobs(settings, stale) == [
        ["pretrain-image@simclr", "evaluate-image@simclr"],  # it never ran
        ["evaluate-image@mae"],
        ["pretrain-image@byol", "evaluate-image@byol"],
        ["pretrain-image@pca", "evaluate-image@pca"],
    ]


DVC = """
import json, sys
open("notes", "a").write(" ".join(sys.argv[1:]) + "\\n")
if "status" in sys.argv:
    print(json.dumps({"pretrain-image@pca": [{"changed deps": {}}]}))
"""


def test_all_else_is_made_before_and_after_and_nothing_of_a_modality_without_entries(tmp_path, monkeypatch):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["benchmark"]["image"] |= {"methods": ["pca"], "sweeps": []}
    params["benchmark"]["text"]["methods"] = []
    params["benchmark"] = {name: params["benchmark"][name] for name in ("image", "text")}
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("fake.py").write_text(DVC)
    monkeypatch.setattr(parallel, "DVC", (sys.executable, "fake.py"))

    def work(waiting):
        with open("notes", "a") as notes:
            print("work", waiting, file=notes)
        return {}

    parallel.reproduce(work, "here")
    assert Path("notes").read_text().splitlines() == [
        "repro plan prepare/dvc.yaml:prepare@image",
        "status --json",
        "work [['pretrain-image@pca', 'evaluate-image@pca']]",
        "repro",
    ]
    with pytest.raises(InputError, match=r"^1 of 1 entries failed"):
        parallel.reproduce(lambda waiting: {"evaluate-image@pca": "it is broken"}, "here")
    assert Path("notes").read_text().splitlines()[-1] == "status --json"


# A cluster: submitit's own executor for this machine


@pytest.fixture
def local(notes, tmp_path, monkeypatch):
    """A cluster of one machine; its jobs start as `python -m dvc`, which in this folder is the program."""
    (tmp_path / "fake.py").rename(tmp_path / "dvc.py")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(cluster, "POLL", 0.1)
    monkeypatch.setattr(runs, "write_all", lambda: Path("tracked").touch(), raising=False)
    return cluster.Cluster("local", {"slurm_array_parallelism": 2})


def test_jobs_of_a_cluster_make_all_runs_and_tell_what_failed(local, notes):
    failed = local.work([["bad", "after"], ["pretrain", "evaluate"]])
    assert list(failed) == ["after"]
    assert "bad is broken" in failed["after"]
    assert {stage for _, stage, _ in notes()} == {"bad", "pretrain", "evaluate"}
    assert [stage for what, stage, _ in notes() if what == "end" and stage != "bad"] == ["pretrain", "evaluate"]
    assert Path("tracked").exists()  # what the machines of the cluster could not tell MLflow is told here


def test_a_job_that_dies_costs_its_own_entry_alone(local, notes):
    failed = local.work([["doomed", "never"], ["pretrain", "evaluate"]])
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
