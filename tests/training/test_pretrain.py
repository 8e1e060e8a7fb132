"""The loop: what it refuses, what it calls a failure, and that an interruption changes nothing."""

import base64
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ssl_methods import Method, build_encoder
from ssl_methods.baselines.untrained import Untrained
from stages.common import settings
from stages.common.files import write_json
from stages.common.settings import Entry, InputError, Training
from stages.training import checkpoint, columns, devices, loop, record
from stages.training.columns import Columns
from stages.training.panels import panel, sentences

ROOT = Path(__file__).parents[2]
SMALL = {"name": "small", "architecture": "ResNet", "width": 8, "blocks": [1, 1], "stride": 1}
TRAINING = Training(encoder="small", epochs=1, batch_size=32, optimizer="adamw", lr=3e-3, device="cpu")


def entry_of(name: str, training: Training = TRAINING, **hyper) -> Entry:
    entry = settings.read().entry("image", name)
    return entry.model_copy(update={"encoder": SMALL, "training": training, "hyper": {**entry.hyper, **hyper}})


@pytest.fixture
def data(tmp_path: Path, pictures: Tensor) -> Path:
    """A prepared data folder of the small pictures, in two classes."""
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    np.save(folder / "train/image.npy", pictures.numpy())
    np.save(folder / "train/label.npy", np.arange(len(pictures)) % 2)
    write_json(
        folder / "manifest.json",
        {
            "data": "small",
            "classes": ["a", "b"],
            "facts": {"size": 16},
            "hash": "0" * 64,
            "splits": {"train": {"rows": 256}},
        },
    )
    return folder


def weights(trained: loop.Trained, folder: Path) -> bytes:
    record.write(trained, folder)
    return (folder / "encoder.safetensors").read_bytes()


def test_equal_seeds_write_equal_bytes(data, tmp_path):
    entry = entry_of("simclr")
    first, again = (weights(loop.train(entry, data, seed=0), tmp_path / str(i)) for i in range(2))
    assert first == again
    assert first != weights(loop.train(entry, data, seed=1), tmp_path / "other")


def test_a_panel_shows_held_out_pictures_that_may_be_shown(data, pictures):
    """A row for each of `shows`, with a white line around each picture; the last row is the truth."""
    (data / "validation").mkdir()
    np.save(data / "validation/image.npy", pictures.numpy())
    manifest = columns.manifest(data)
    trained = loop.train(entry_of("autoencoder"), data, seed=0)
    for shown in (list(range(0, 256, 42))[:6], [3, 5, 8]):
        write_json(data / "manifest.json", manifest | {"show": {"validation": shown}})
        made = panel(trained.method, data, torch.device("cpu"))
        assert made["shows"] == ["output", "truth"]
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(made["webp"]))).convert("RGB"))
        assert drawn.shape == (2 * 18, len(shown) * 18, 3)
        for n, row in enumerate(shown):
            truth = drawn[19:35, 18 * n + 1 : 18 * n + 17].astype(int)
            assert abs(truth - pictures[row].permute(1, 2, 0).numpy()).mean() < 20  # WebP keeps colours coarsely
    assert panel(loop.train(entry_of("untrained"), data, seed=0).method, data, torch.device("cpu")) is None


class Told(Method):
    """Its loss is the number of the batch's first row."""

    columns = ("index_of",)

    def forward(self, batch):
        first = batch["index_of"][0].float()
        return first, {"twice": 2 * first}


def test_held_out_numbers_are_means_over_validation_batches(tmp_path):
    (tmp_path / "validation").mkdir()
    np.save(tmp_path / "validation/index_of.npy", np.arange(50))
    cpu = torch.device("cpu")
    table = Columns(tmp_path / "validation", ["index_of"], cpu)
    firsts = [table.batch(step, 16, seed=0)["index_of"][0].item() for step in range(3)]
    expected = {"loss": pytest.approx(sum(firsts) / 3, rel=1e-4), "twice": pytest.approx(sum(firsts) / 1.5, rel=1e-4)}
    assert record.held_out(Told(), tmp_path, cpu, batch_size=16) == expected
    assert record.held_out(Told(), tmp_path, cpu, batch_size=64) == {}  # more than there are
    assert record.held_out(Untrained(torch.nn.Identity()), tmp_path, cpu, batch_size=16) == {}


def test_sentences_are_read_back_with_the_datas_vocabulary(tmp_path):
    tokenizer = tokenizers.BertWordPieceTokenizer()
    specials = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    tokenizer.train_from_iterator(["the cat sat"] * 9, vocab_size=40, special_tokens=specials, show_progress=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = [1, *tokenizer.encode("the cat", add_special_tokens=False).ids, 2, 0, 0]
    writer = Told()
    writer.say = lambda count: torch.tensor([ids] * count)
    assert sentences(writer, tmp_path) == ["the cat"] * 5
    assert sentences(Told(), tmp_path) == []


def test_every_picture_is_seen_once_an_epoch_in_an_order_of_the_seed(data):
    table = Columns(data / "train", ["image"], torch.device("cpu"))
    epoch = torch.cat([table.batch(step, 32, seed=0)["index"] for step in range(8)])
    assert epoch.sort().values.tolist() == list(range(256))
    assert not torch.equal(table.batch(0, 32, seed=0)["index"], table.batch(0, 32, seed=1)["index"])
    assert not torch.equal(table.batch(0, 32, seed=0)["index"], table.batch(8, 32, seed=0)["index"])


def test_a_column_on_disk_gives_the_same_batches(data, monkeypatch):
    in_memory = Columns(data / "train", ["image", "label"], torch.device("cpu")).batch(3, 32, seed=0)
    monkeypatch.setattr(columns, "LARGE", 0)
    on_disk = Columns(data / "train", ["image", "label"], torch.device("cpu")).batch(3, 32, seed=0)
    assert all(torch.equal(in_memory[name], on_disk[name]) for name in in_memory)


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_an_interrupted_run_ends_with_the_same_bytes(name, data, tmp_path, monkeypatch):
    """BYOL has a teacher and a schedule, MoCo a teacher and a queue; both must come back as they were."""
    entry = entry_of(name, TRAINING.model_copy(update={"epochs": 2}), **({"queue": 64} if name == "moco" else {}))
    judged = []  # the latest losses, which tell a dead run: they, too, must come back
    monkeypatch.setattr(loop, "fault_in", lambda losses, *_: judged.append(losses.tolist()))
    straight = loop.train(entry, data, seed=0)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)

    def stop_at_9(step: int, **numbers: float) -> None:
        if step == 9:
            raise KeyboardInterrupt

    (tmp_path / "keep").mkdir()
    with pytest.raises(KeyboardInterrupt):
        loop.train(entry, data, seed=0, log=stop_at_9, keep=tmp_path / "keep")
    torch.manual_seed(99)  # another process would not have the random state of this one
    logged = []
    resumed = loop.train(entry, data, seed=0, log=lambda step, **_: logged.append(step), keep=tmp_path / "keep")
    assert weights(resumed, tmp_path / "resumed") == weights(straight, tmp_path / "straight")
    assert [p["loss"] for p in resumed.curve] == [p["loss"] for p in straight.curve]
    assert judged[15] == judged[-1]
    assert logged == list(range(1, 17))  # the tracker hears every point, and passes over those it has


@pytest.mark.parametrize("step", [5, 6])  # between two points of the curve, and at one
def test_sigterm_finishes_the_step_and_leaves_a_checkpoint(step, data, tmp_path, monkeypatch):
    entry = entry_of("byol", TRAINING.model_copy(update={"epochs": 2}))
    monkeypatch.setattr(loop, "POINTS", 8)  # of 16 steps
    straight = loop.train(entry, data, seed=0)
    stepped, descend = [], loop.descend

    def asked_to_stop(*given) -> None:
        stepped.append(descend(*given))
        if len(stepped) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "keep").mkdir()
    monkeypatch.setattr(loop, "descend", asked_to_stop)
    with pytest.raises(KeyboardInterrupt):
        loop.train(entry, data, seed=0, keep=tmp_path / "keep")
    assert len(stepped) == step
    assert checkpoint.restore(tmp_path / "keep", torch.device("cpu"))["step"] == step
    torch.manual_seed(99)
    resumed = loop.train(entry, data, seed=0, keep=tmp_path / "keep")
    assert weights(resumed, tmp_path / "resumed") == weights(straight, tmp_path / "straight")
    assert [p["loss"] for p in resumed.curve] == [p["loss"] for p in straight.curve]


@pytest.mark.parametrize("name", ["byol", "swav"])
def test_a_run_killed_after_its_last_step_ends_with_the_same_numbers(name, data, tmp_path, monkeypatch):
    """While its record is made, that is; what it cost and how it does its task are as they would have been."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    (tmp_path / "keep").mkdir()
    first, again = (loop.train(entry_of(name), data, seed=0, keep=tmp_path / "keep") for _ in range(2))
    assert (again.samples, again.method.progress) == (first.samples, first.method.progress) == (256, 1.0)
    assert weights(again, tmp_path / "again") == weights(first, tmp_path / "first")


def test_a_killed_process_resumes_from_its_checkpoint(data, tmp_path):
    """The real stage, killed with SIGKILL once a checkpoint is there, then run again."""
    script = tmp_path / "stage.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "from stages.common.settings import Entry\n"
        "from stages.training import checkpoint, loop, record\n"
        "loop.CHECKPOINT_SECONDS = 0\n"
        "entry = Entry.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "keep = Path(sys.argv[3] + '-keep')\n"
        "with checkpoint.locked(keep):\n"
        "    trained = loop.train(entry, Path(sys.argv[2]), 0, keep=keep)\n"
        "    record.write(trained, Path(sys.argv[3]))\n",
        encoding="utf-8",
    )
    described = tmp_path / "entry.json"
    described.write_text(
        entry_of("byol", TRAINING.model_copy(update={"epochs": 4})).model_dump_json(), encoding="utf-8"
    )

    def command(out: str) -> list[str]:
        return [sys.executable, str(script), str(described), str(data), str(tmp_path / out)]

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command("straight"), cwd=tmp_path, env=environment, check=True, capture_output=True)
    killed = subprocess.Popen(command("resumed"), cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    saved = tmp_path / "resumed-keep/checkpoint.pt"
    while not saved.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    ended = subprocess.run(
        command("resumed"), cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert "resumed at step" in ended.stdout
    straight, resumed = ((tmp_path / out / "encoder.safetensors").read_bytes() for out in ("straight", "resumed"))
    assert resumed == straight


def test_a_damaged_checkpoint_is_said_so_and_passed_over(data, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 not whole")
    trained = loop.train(entry_of("simclr"), data, seed=0, keep=tmp_path)
    assert trained.status == "ok"
    assert "cannot be read" in capsys.readouterr().err


def test_one_run_is_not_run_twice_at_once(tmp_path):
    with (
        checkpoint.locked(tmp_path),
        pytest.raises(InputError, match="another process"),
        checkpoint.locked(tmp_path),
    ):
        pass


def test_a_run_that_diverges_is_a_result(data, tmp_path):
    """No weights are left, and the status says when and why."""
    entry = entry_of("simclr", TRAINING.model_copy(update={"lr": 1e30, "epochs": 2, "warmup": 0.0}))
    trained = loop.train(entry, data, seed=0)
    assert trained.status == "diverged"
    assert 1 <= trained.step <= 16
    record.write(trained, tmp_path / "out")
    assert json.loads((tmp_path / "out/status.json").read_text())["cause"].startswith("the loss is")
    assert not (tmp_path / "out/encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, float("nan"), 2.0], (9, "the loss is nan")),
        ([3.0, 2.0, float("inf")], (10, "the loss is inf")),
        ([1.5] * 20, (10, "the loss has not moved for 20 steps")),
        ([1.5] * 19, None),
        ([1.5] * 19 + [1.4], None),
    ],
)
def test_faults_are_found_at_their_step(losses, expected):
    assert loop.fault_in(torch.tensor(losses), 10, moves=True) == expected


def test_a_loss_without_a_gradient_may_stand_still():
    assert loop.fault_in(torch.ones(30), 30, moves=False) is None


def test_weights_load_into_the_architecture(data, tmp_path):
    weights(loop.train(entry_of("moco"), data, seed=0), tmp_path)
    network = build_encoder(SMALL, {"size": 16})
    network.load_state_dict(load_file(tmp_path / "encoder.safetensors"))


def test_clipping_bounds_the_gradient():
    layer = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.detach().clone()
    loop.descend(optimizer, 1e6 * layer(torch.ones(2, 4)).sum(), rate=1.0, clip=0.1)
    moved = torch.cat([(layer.weight.detach() - before).flatten(), layer.bias.grad]).norm()
    assert moved.item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("simclr", {"batch_size": 257}, "batch_size 257 of simclr is larger than the data"),
        ("simclr", {"device": "cuda:7"}, "device: cuda:7 was asked for"),
        ("simclr", {"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(name, change, expected, data):
    with pytest.raises(InputError, match=expected):
        loop.train(entry_of(name, TRAINING.model_copy(update=change)), data, seed=0)


def test_a_method_that_needs_labels_says_so(data):
    content = json.loads((data / "manifest.json").read_text())
    write_json(data / "manifest.json", {**content, "classes": []})
    with pytest.raises(InputError, match="supervised needs labels"):
        loop.train(entry_of("supervised"), data, seed=0)


def test_an_encoder_that_does_not_suit_a_method_is_refused(data):
    with pytest.raises(InputError, match="mae cannot use the encoder 'small'"):
        loop.train(entry_of("mae"), data, seed=0)


def test_data_that_was_not_prepared_is_told(tmp_path):
    with pytest.raises(InputError, match="`dvc repro`, which prepares it first"):
        loop.train(entry_of("simclr"), tmp_path, seed=0)


def test_the_device_says_what_it_is():
    assert devices.describe(torch.device("cpu")).startswith("cpu: ")
    assert devices.choose_precision("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_where_torch_says_nothing_of_the_cpu_the_system_does(monkeypatch):
    before = devices.describe(torch.device("cpu"))
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in torch 2.9
    assert devices.describe(torch.device("cpu")) == before
    assert devices.cpu_capabilities().get("sse2") or platform.machine() != "x86_64"


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_bf16": True, "amx_bf16": False}, torch.float32),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"architecture": "aarch64", "bf16": True}, torch.float32),
    ],
)
def test_a_cpu_trains_in_bfloat16_where_it_is_the_faster(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert devices.choose_precision("auto", torch.device("cpu")) is precision


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"not": object()})
    assert list(tmp_path.iterdir()) == []


BEYOND_MEMORY = """
import resource, sys
from pathlib import Path

import numpy as np

from stages.common import settings
from stages.common.settings import Training
from stages.training import loop

folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30))  # what a process may fill; maps of files are free
try:
    np.ones(4 * 2**30, np.uint8)
except MemoryError:
    pass
else:
    sys.exit("the limit does not hold here")
entry = settings.read().entry("image", "simclr")
small = {"name": "small", "architecture": "ResNet", "width": 8, "blocks": [1, 1], "stride": 1}
training = Training(encoder="small", epochs=4 * 32 / 8_000_000, batch_size=32, optimizer="adamw", lr=3e-3, device="cpu")
trained = loop.train(entry.model_copy(update={"encoder": small, "training": training}), folder, seed=0)
print(trained.status, trained.samples)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_data_larger_than_memory_are_trained_on(tmp_path):
    """Six gigabytes of pictures, a file that takes up no room on disk, where three may be filled."""
    rows = 8_000_000
    (tmp_path / "train").mkdir()
    np.lib.format.open_memmap(tmp_path / "train/image.npy", mode="w+", dtype=np.uint8, shape=(rows, 3, 16, 16))
    facts = {
        "data": "large",
        "classes": [],
        "facts": {"size": 16},
        "hash": "0" * 64,
        "splits": {"train": {"rows": rows}},
    }
    write_json(tmp_path / "manifest.json", facts)
    command = [sys.executable, "-c", BEYOND_MEMORY, str(tmp_path)]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "ok 128"
