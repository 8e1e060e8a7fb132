"""Seeds side by side, in a program of its own: children are forked, which a process that has computed cannot do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from stages.common.settings import InputError
from stages.training import children

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, shutil, sys, time
from pathlib import Path
import torch
from stages.common.command import command
from stages.common.settings import InputError
from stages.training import seeds

how, wanted, given = json.loads(sys.argv[1])


def work(seed, keep, results, tell):
    rank = int(os.environ.get("RANK", "0"))
    tell.share(0.5)
    tell.point(step=1, loss=seed + 0.25)
    with open("notes", "a") as notes:
        notes.write(f"begin {seed} {rank} {os.getpid()} {torch.get_num_threads()}\\n")
    time.sleep(how.get("seconds", 0.2))
    match how.get(f"{seed} {rank}"):
        case "mistake":
            raise InputError("too large; choose less")
        case "swept":  # by another program, or by hand
            shutil.rmtree(".scratch/pretrain/image/a/0")
        case "bug":
            raise ZeroDivisionError("a bug")
        case "killed":
            os.kill(os.getpid(), 9)
        case "waits":
            time.sleep(600)
    if results:
        (results / "out").write_text(str(seed))
    with open("notes", "a") as notes:
        notes.write(f"end {seed} {rank} {os.getpid()} {torch.get_num_threads()}\\n")


def main():
    heard = lambda seed, point: print("heard", seed, point["loss"], flush=True)
    keys = {seed: f"key{seed}" for seed in wanted}
    options = {"proof": "out", "device": torch.device("cpu"), "heard": heard, **given}
    made = seeds.make("pretrain", "image", "a", keys, work, **options)
    print("made", {seed: (folder / "out").read_text() for seed, folder in made.items()})


command(main)
"""


class Program:
    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "program.py").write_text(PROGRAM, encoding="utf-8")

    def start(self, seeds: list[int], how: dict | None = None, **options) -> subprocess.Popen:
        given = json.dumps([how or {}, seeds, {"at_once": "auto", **options}])
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4"}
        return subprocess.Popen(
            [sys.executable, "program.py", given],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *given, **options) -> tuple[int, str, str]:
        process = self.start(*given, **options)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def notes(self, what: str) -> list[list[str]]:
        """The seed, rank, process and threads of what began or ended."""
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(what)]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_all_seeds_are_made_and_their_points_are_heard(program):
    code, out, err = program.run([0, 1, 2])
    assert code == 0, err
    assert "made {0: '0', 1: '1', 2: '2'}" in out
    assert sorted(line for line in out.splitlines() if line.startswith("heard")) == [
        f"heard {seed} {seed}.25" for seed in range(3)
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_so_many_at_a_time_share_the_cores(program, count):
    assert program.run([0, 1, 2], at_once=count)[0] == 0
    lines, running, most = (program.folder / "notes").read_text().splitlines(), 0, 0
    for line in lines:
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most == count
    assert {threads for *_, threads in program.notes("begin")} == {str(4 // count)}


def test_a_seed_that_fails_is_named_and_the_others_finish(program):
    code, _, err = program.run([0, 1, 2], {"1 0": "mistake"})
    assert code == 1
    assert err.splitlines()[-1] == "error: a, seed 1: too large; choose less"
    code, out, _ = program.run([0, 1, 2])  # and they are not made again
    assert "2 of 3 seeds are kept from before" in out
    assert [seed for seed, *_ in program.notes("end")].count("0") == 1


def test_a_mistake_that_all_seeds_make_is_told_once(program):
    _, _, err = program.run([0, 1], {"0 0": "mistake", "1 0": "mistake"})
    assert err.count("too large") == 1
    assert "error: a, seed 0, 1: too large; choose less" in err


def test_a_bug_shows_where_it_is_and_a_kill_is_told(program):
    _, _, err = program.run([0, 1], {"0 0": "bug", "1 0": "killed"})
    assert "ZeroDivisionError: a bug" in err
    assert "a, seed 1: the system killed it" in err


def test_a_fourth_seed_makes_one_and_another_key_makes_its_own(program):
    program.run([0, 1, 2])
    code, _, _ = program.run([0, 1, 2, 3])
    assert code == 0
    assert sorted(seed for seed, *_ in program.notes("begin")) == ["0", "1", "2", "3"]


def test_a_run_that_was_cut_off_is_made_again(program):
    half = program.folder / ".scratch/pretrain/image/a/0/key0/partial"
    half.mkdir(parents=True)
    (half / "out").write_text("half")
    assert "made {0: '0'}" in program.run([0])[1]


def test_a_finished_run_that_lost_its_files_is_made_again(program):
    program.run([0, 1])
    (program.folder / ".scratch/pretrain/image/a/0/key0/done/out").unlink()
    assert "made {0: '0', 1: '1'}" in program.run([0, 1])[1]
    assert sorted(seed for seed, *_ in program.notes("begin")) == ["0", "0", "1"]


def test_what_is_deleted_while_others_run_is_told_and_made_again(program):
    code, _, err = program.run([0, 1], {"1 0": "swept"}, at_once=1)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: a, seed 0: what it made is gone, for .scratch was deleted meanwhile")
    assert "made {0: '0', 1: '1'}" in program.run([0, 1])[1]


def test_finished_runs_of_other_settings_are_removed_and_unfinished_ones_stay(program):
    place = program.folder / ".scratch/pretrain/image/a/0"
    (place / "old/done").mkdir(parents=True)
    (place / "begun").mkdir()
    program.run([0])
    assert {path.name for path in place.iterdir()} == {"begun", "key0"}


def test_several_processes_share_a_run_and_end_together(program):
    code, _, err = program.run([0, 1], processes=2)
    assert code == 0, err
    assert sorted((seed, rank) for seed, rank, *_ in program.notes("end")) == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"),
    ]  # fmt: skip
    assert {threads for *_, threads in program.notes("begin")} == {"2"}
    code, _, err = program.run([2, 3], {"2 1": "bug", "2 0": "waits"}, processes=2)
    assert code == 1
    assert "a bug" in err
    assert ["3", "0"] in [note[:2] for note in program.notes("end")]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_end_with_their_parent(program, how):
    process = program.start([0, 1, 2], {"seconds": 600})
    until = time.monotonic() + 60
    while len(program.notes("begin")) < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    pids = [int(pid) for _, _, pid, _ in program.notes("begin")]
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if how is signal.SIGKILL else 130)
    assert "Traceback" not in err
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < until + 60
        time.sleep(0.05)


@pytest.mark.parametrize("asked", ["0", "-2", "many"])
def test_cores_that_make_no_sense_are_one_clear_line(asked, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    with pytest.raises(InputError, match=f"^OMP_NUM_THREADS: expected a whole number .* but it is '{asked}'"):
        children.cores()


def test_cores_are_those_of_the_outermost_loop(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert children.cores() == 4


def test_as_many_at_a_time_as_serve_best(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert children.at_once("auto", 3, cpu) == 3
    assert children.at_once("auto", 30, cpu) == 4
    assert children.at_once(2, 30, cpu) == 2
    assert children.at_once("auto", 3, cpu, processes=2) == 1
    memory = [type("Properties", (), {"total_memory": size * 2**30}) for size in (24, 80)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: memory[i])
    assert children.at_once("auto", 30, torch.device("cuda")) == 1 + 5
