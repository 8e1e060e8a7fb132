"""The protocol from files to numbers, on a small made-up data set with a real encoder."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import ssl_methods
from stages import plan
from stages.common import settings
from stages.common.files import write_json
from stages.common.settings import Evaluation, InputError
from stages.measures import frozen, low_label, protocol

ROWS = {"train": 90, "validation": 45, "test": 45}
ENCODER = {"name": "tiny", "architecture": "ResNet", "width": 4, "blocks": [1, 1], "stride": 2}
PROTOCOL = Evaluation(strengths=[1e-4, 1e-2], neighbours=[1, 5, 1000], batch_size=32)
WHOLE = Evaluation(
    strengths=[1e-4, 1e-2],
    neighbours=[1, 5],
    batch_size=32,
    low_label={"shares": [0.01, 0.2], "per_class": [1], "draws": 3, "strengths": [1e-2, 1.0]},
    finetune={"epochs": 3, "batch_size": 16, "lr": 0.01},
    transfer={"label": {"image": "shade"}, "strengths": [1e-3, 1e-1]},
)
TUNED = ("finetune", "transfer")  # what PROTOCOL leaves out
ACCURACIES = ("linear", "linear_depth", "knn")
HEALTH = ("effective_rank", "spread", "dead", "lidar", "alignment", "uniformity", "features")
NUMBERS = {*ACCURACIES, *TUNED, "low_label", "low_label_error", *HEALTH}
NUMBERS |= {f"{name}_{what}" for name in ACCURACIES + TUNED for what in ("error", "validation")}
TABLES = {"depths", "probe", "retrieval", "zero_shot", "low_label_details", "finetune_curve", "transfer_details"}
TABLES |= {"clustering", "confusion", "map"}
RESULT = {"status", "choices", "data", "symptom", "neighbours", *NUMBERS, *TABLES}


def write_data(folder, *, labels=True):
    """Noisy pictures (3, 8, 8), red, green or blue according to their class."""
    random = np.random.default_rng(0)
    for split, rows in ROWS.items():
        label = np.arange(rows) % 3
        image = random.integers(0, 120, (rows, 3, 8, 8), dtype=np.uint8)
        image[np.arange(rows), label] += 80
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "image.npy", image)
        if labels:
            np.save(folder / split / "label.npy", label)
            np.save(folder / split / "shade.npy", (image.mean((1, 2, 3)) > 85).astype(np.int64))
    splits = {split: {"rows": rows} for split, rows in ROWS.items()}
    classes = ["red", "green", "blue"] if labels else []
    write_json(
        folder / "manifest.json",
        {"data": "made", "classes": classes, "facts": {"size": 8}, "splits": splits, "hash": "da1a" * 9},
    )


def write_models(folder, *, status="ok"):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if status == "ok":
        save_file(ssl_methods.build_encoder(ENCODER, {}).state_dict(), folder / "encoder.safetensors")
    write_json(folder / "status.json", {"status": status, "step": None, "cause": None})


@pytest.fixture
def models(tmp_path):
    write_models(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def data(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path / "data"


def run(models, data, recipe=PROTOCOL, **given):
    return protocol.evaluate(models, data, "image", ENCODER, recipe, **given)


def relabel(data, split, change):
    label = np.load(data / split / "label.npy")
    np.save(data / split / "label.npy", change(label))


def test_a_result_is_as_the_report_reads_it(models, data):
    found = run(models, data)
    assert set(found) == RESULT
    assert found["status"] == "ok"
    assert found["features"] == 8
    assert found["linear"] > 80
    assert found["knn"] > 80
    assert 1.5 < found["effective_rank"] <= 8
    assert 0.01 < found["spread"] < 1
    assert found["linear_error"] == pytest.approx((found["linear"] * (100 - found["linear"]) / 45) ** 0.5)
    choices = {"strength", "depth", "depth_strength", "k", "temperature", "transfer_strength", "epoch"}
    assert found["choices"].keys() == choices
    assert len(found["depths"]) == 2
    assert [point["strength"] for point in found["probe"]] == [1e-2, 1e-4]
    assert found["linear_validation"] == max(point["validation"] for point in found["probe"])
    assert found["data"] == {"classes": ["red", "green", "blue"], "rows": ROWS}


def test_everything_is_measured_where_the_protocol_asks_for_it(models, data):
    found = run(models, data, WHOLE)
    assert None not in [found[key] for key in NUMBERS]
    assert found["finetune"] > 60
    assert found["finetune_validation"] == max(point["validation"] for point in found["finetune_curve"])
    assert [point["epoch"] for point in found["finetune_curve"]] == [1, 2, 3]
    assert list(found["low_label_details"]) == ["1 %", "20 %", "1 per class"]
    assert found["low_label"] == found["low_label_details"]["1 %"]["accuracy"]
    assert [budget["rows"] for budget in found["low_label_details"].values()] == [3, 18, 3]
    assert all(len(budget["draws"]) == 3 for budget in found["low_label_details"].values())
    assert found["transfer_details"] == {"label": "shade", "classes": 2}
    for name in (*TUNED, "low_label"):
        assert found[f"{name}_error"] == pytest.approx((found[name] * (100 - found[name]) / 45) ** 0.5)
    assert found["clustering"].keys() == {"nmi", "ari", "accuracy"}
    assert sum(map(sum, found["confusion"])) == 45
    right = sum(found["confusion"][i][i] for i in range(3))
    assert found["linear"] == pytest.approx(100 * right / 45)
    assert [sum(row) for row in found["confusion"]] == [15, 15, 15]
    assert [len(found["map"][axis]) for axis in ("x", "y", "label")] == [45, 45, 45]
    assert found["symptom"] is None


def test_choices_are_functions_of_train_and_validation(models, data):
    """Neither other labels nor other pictures in test change one."""
    found = run(models, data, WHOLE)
    relabel(data, "test", lambda label: (label + 1) % 3)
    np.save(data / "test/shade.npy", 1 - np.load(data / "test/shade.npy"))
    scrambled = run(models, data, WHOLE)
    assert scrambled["linear"] < 50 < found["linear"]
    assert scrambled["finetune"] < 50 < found["finetune"]
    assert scrambled["transfer"] == pytest.approx(100 - found["transfer"])
    chosen = ["choices", "probe", "depths", "finetune_curve", *(key for key in NUMBERS if key.endswith("_validation"))]
    assert [scrambled[key] for key in chosen] == [found[key] for key in chosen]
    assert all(scrambled[key] == found[key] for key in HEALTH)
    np.save(data / "test/image.npy", 255 - np.load(data / "test/image.npy"))
    others = run(models, data, WHOLE)
    assert [others[key] for key in chosen] == [found[key] for key in chosen]


def test_no_column_of_test_is_opened_before_everything_is_chosen(models, data, monkeypatch):
    events = []
    opened, choose = np.load, protocol.choose
    monkeypatch.setattr(np, "load", lambda path, *rest, **kind: events.append(path) or opened(path, *rest, **kind))
    monkeypatch.setattr(protocol, "choose", lambda *parts: (choose(*parts), events.append("chosen"))[0])
    run(models, data, WHOLE)
    before, after = events[: events.index("chosen")], events[events.index("chosen") + 1 :]
    assert {path.parent.name for path in before} == {"train", "validation"}
    assert "test" in {path.parent.name for path in after}


def test_the_draws_of_few_labels_are_those_of_train_and_choose_on_validation(models, data):
    found = run(models, data, WHOLE)
    encoder = frozen.load(models / "encoder.safetensors", ENCODER, {})
    subject = frozen.Subject(encoder, "image", data, WHOLE)
    train, validation, test = (frozen.see(subject, split) for split in ROWS)
    kind = {"shares": [0.2], "per_class": [], "draws": 3, "strengths": [1e-2, 1.0], "classes": 3}
    chosen = low_label.choose(train.last, validation.last, **kind)
    assert low_label.read(chosen, test.last)["20 %"] == found["low_label_details"]["20 %"]


def test_transfer_is_not_measured_where_the_data_lacks_the_column(models, data):
    for split in ROWS:
        (data / split / "shade.npy").unlink()
    found = run(models, data, WHOLE)
    assert (found["transfer"], found["transfer_error"], found["transfer_details"]) == (None, None, {})
    assert found["choices"]["transfer_strength"] is None


def test_a_class_of_transfer_that_test_alone_has_is_missed(models, data):
    np.save(data / "test/shade.npy", np.full(45, 7))
    found = run(models, data, WHOLE)
    assert found["transfer"] == 0
    assert found["transfer_details"]["classes"] == 3


def test_the_same_concept_by_another_vendor_is_looked_for(models, data):
    """Rows i and i + 15 of the first 30 show one concept by two vendors; the last 15 have no partner and do not ask."""
    random = np.random.default_rng(1)
    image = random.integers(0, 255, (45, 3, 8, 8), dtype=np.uint8)
    image[15:30] = image[:15]
    np.save(data / "test/image.npy", image)
    concept = np.concatenate([np.arange(15), np.arange(30)])
    vendor = np.arange(45) // 15
    vendor[30:] = 0
    for split in ROWS:
        rows = ROWS[split]
        np.save(data / split / "concept.npy", concept if split == "test" else np.arange(rows))
        np.save(data / split / "vendor.npy", vendor if split == "test" else np.zeros(rows, np.int64))
    concept[30:] = np.arange(100, 115)
    np.save(data / "test/concept.npy", concept)
    found = run(models, data)["retrieval"]["same concept, another vendor"]
    assert (found["r1"], found["map"], found["median_rank"]) == (100, 100, 1)
    assert found["chance_r1"] == pytest.approx(100 / 44)
    np.save(data / "test/vendor.npy", np.zeros(45, np.int64))
    assert run(models, data)["retrieval"] == {}


def test_neighbours_show_only_what_may_be_shown(models, data):
    """The pictures that may be shown are white, all others black: no black picture is on the sheet."""
    show = {"train": list(range(0, 90, 3)), "test": [1, 5, 8], "validation": []}
    for split in ("train", "test"):
        image = np.zeros((ROWS[split], 3, 8, 8), np.uint8)
        image[show[split]] = 255
        np.save(data / split / "image.npy", image)
    assert sheet(run(models, data)["neighbours"]).min() < 10
    manifest = json.loads((data / "manifest.json").read_text())
    write_json(data / "manifest.json", manifest | {"show": show})
    found = run(models, data)["neighbours"]
    assert found["queries"] == 3
    assert sheet(found).shape == (3 * 10, 8 * 10, 3)
    assert sheet(found).min() > 245
    write_json(data / "manifest.json", manifest | {"show": show | {"test": []}})
    assert run(models, data)["neighbours"] is None


def sheet(found):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found["webp"]))))


def test_neighbours_are_the_nearest_of_train_for_the_frozen_encoder(models, data):
    """Each query of test lies in train too, so that it is its own first neighbour."""
    random = np.random.default_rng(2)
    image = random.integers(0, 255, (90, 3, 1, 1), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    np.save(data / "train/image.npy", image)
    np.save(data / "test/image.npy", image[:45])
    lines = sheet(run(models, data)["neighbours"]).astype(int)
    cells = lines.reshape(6, 10, 8, 10, 3).swapaxes(1, 2)[:, :, 3:7, 3:7].mean((2, 3))  # (6, 8, 3)
    assert np.abs(cells[:, 0] - cells[:, 1]).max() < 12  # WebP is lossy
    assert np.abs(cells[:, 0] - cells[:, 7]).max() > 12


def test_features_are_those_of_the_frozen_encoder_whatever_the_batch(models, data):
    network = frozen.load(models / "encoder.safetensors", ENCODER, {}).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    subjects = [
        frozen.Subject(network, "image", data, PROTOCOL.model_copy(update={"batch_size": size})) for size in (7, 1000)
    ]
    towers, others = (frozen.embed(subject, "test") for subject in subjects)
    assert towers.keys() == {"image"}
    shapes = {name: (depth.dtype, depth.shape) for name, depth in towers["image"].items()}
    assert shapes == {"stage 1": (torch.float32, (45, 4)), "stage 2": (torch.float32, (45, 8))}
    torch.testing.assert_close(towers["image"], others["image"])
    pictures = torch.from_numpy(np.load(data / "test/image.npy")) / 255
    torch.testing.assert_close(towers["image"]["stage 2"], network.eval()(pictures).detach())
    assert frozen.see(subjects[0], "test").labels.tolist() == [row % 3 for row in range(45)]
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


def test_fine_tuning_leaves_the_frozen_encoder_as_it_was(models, data):
    expected, found = run(models, data), run(models, data, WHOLE)
    assert all(found[key] == expected[key] for key in (*ACCURACIES, *HEALTH))


def test_validation_chooses_the_depth_and_test_is_read_there(data):
    """Classes are plain to see in the middle; the deepest features, and those of the test split alone, tell nothing."""
    torch.manual_seed(0)
    labels = {split: torch.arange(rows) % 3 for split, rows in ROWS.items()}
    noise = {split: torch.randn(rows, 4) for split, rows in ROWS.items()}
    plain = {split: F.one_hot(labels[split], 3) + 0.1 * torch.randn(rows, 3) for split, rows in ROWS.items()}
    last = {**noise, "test": plain["test"].repeat(1, 2)[:, :4]}
    subject = frozen.Subject(torch.nn.Identity(), "image", data, PROTOCOL)

    def probed(depths):
        splits = [frozen.Split(s, torch.arange(rows), labels[s], depths(s)) for s, rows in ROWS.items()]
        chosen = protocol.choose(subject, *splits[:2], advance=lambda share: None)
        return protocol.read_probes(subject, chosen, *splits)

    found = probed(lambda s: {"first": noise[s], "middle": plain[s], "last": last[s]})
    assert found["choices"]["depth"] == "middle"
    assert found["linear_depth"] == found["linear_depth_validation"] == found["depths"]["middle"] == 100
    assert found["depths"]["last"] == found["linear_validation"] < 60
    same = probed(lambda s: {"first": plain[s], "last": plain[s]})
    assert same["choices"]["depth"] == "last"  # the deepest among equals
    assert same["linear_depth"] == same["linear"]


def test_rows_without_a_label_are_passed_over(models, data):
    expected = run(models, data, WHOLE)
    for split in ROWS:
        column = np.load(data / split / "image.npy")
        np.save(data / split / "image.npy", np.concatenate([column, column[:9]]))
        relabel(data, split, lambda label: np.concatenate([label, np.full(9, -1)]))
        np.save(data / split / "shade.npy", np.concatenate([np.load(data / split / "shade.npy"), np.zeros(9, int)]))
    found = run(models, data, WHOLE)
    assert {key: found[key] for key in RESULT - {"data"}} == {key: expected[key] for key in RESULT - {"data"}}


def test_a_split_without_any_label_is_an_error(models, data):
    relabel(data, "validation", lambda label: np.full_like(label, -1))
    with pytest.raises(InputError, match="validation split has no labelled row"):
        run(models, data)


def test_unlabelled_data_has_what_needs_no_label_only(models, data):
    expected = run(models, data)
    shutil.rmtree(data)
    write_data(data, labels=False)
    found = run(models, data, WHOLE)
    health = {key: expected[key] for key in HEALTH}
    assert found["status"] == "unlabelled"
    assert {key: found[key] for key in NUMBERS} == dict.fromkeys(NUMBERS) | health
    assert found["neighbours"]["queries"] == 6
    assert found["choices"] is None
    assert found["probe"] == []


def test_a_diverged_run_is_not_evaluated(models, data):
    shutil.rmtree(models)
    write_models(models, status="diverged")
    found = run(models, data)
    assert found["status"] == "diverged"
    assert set(found) == RESULT
    assert not any(found[key] for key in RESULT - {"status", "data"})


def tamper(models, change):
    weights = load_file(models / "encoder.safetensors")
    change(weights)
    save_file(weights, models / "encoder.safetensors")


def test_features_that_are_not_finite_count_as_diverged(models, data):
    tamper(models, lambda weights: weights["stem.weight"].fill_(float("nan")))
    found = run(models, data)
    assert found["status"] == "diverged"
    assert not any(found[key] for key in RESULT - {"status", "data"})
    network = frozen.load(models / "encoder.safetensors", ENCODER, {})
    assert protocol.validation_score(network, "image", data, PROTOCOL) is None


def test_a_run_without_a_map_is_measured_alike(models, data):
    found, less = run(models, data), run(models, data, mapped=False)
    assert found["map"]
    assert less == {**found, "map": {}}
    assert plan.evaluate_of(settings.read(), "image", "simclr")["mapped"] == 0  # the first seed


def test_constant_features_are_called_collapsed_and_still_measured(models, data):
    tamper(models, lambda weights: weights["stem.weight"].zero_())
    tamper(models, lambda weights: weights["norm.bias"].fill_(1))
    found = run(models, data, WHOLE)
    assert found["status"] == "collapsed"
    assert found["symptom"] == "effective rank 1 is below 1.5 and spread 0 is below 0.01"
    assert found["spread"] == pytest.approx(0, abs=1e-6)
    assert found["linear"] == pytest.approx(100 / 3)
    assert (found["dead"], found["alignment"], found["uniformity"]) == pytest.approx((100, 0, 0), abs=1e-6)
    assert found["lidar"] == pytest.approx(1, abs=1e-3)
    assert found["map"] == {}


@pytest.mark.parametrize(
    ("threshold", "symptom"),
    [
        ({"collapsed_spread": 1.1}, r"^spread 0\.\d+ is below 1\.1$"),
        ({"collapsed_rank": 8.1}, r"^effective rank \d\.\d is below 8\.1$"),
    ],
)
def test_either_threshold_of_the_protocol_decides_what_is_collapsed(models, data, threshold, symptom):
    found = run(models, data, PROTOCOL.model_copy(update=threshold))
    assert found["status"] == "collapsed"
    assert re.search(symptom, found["symptom"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("stem.weight"), r"stem\.weight is missing"),
        (lambda weights: weights.update(spare=torch.ones(2)), "spare is unexpected"),
        (lambda weights: weights.update({"norm.bias": torch.ones(5)}), r"norm\.bias has shape \(5,\), not \(4,\)"),
        (lambda weights: weights.clear(), r"is missing \(and \d+ more faults\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(models, data, change, message):
    tamper(models, change)
    with pytest.raises(InputError, match=message):
        run(models, data)


def test_missing_and_damaged_files_are_named(models, data, tmp_path):
    with pytest.raises(InputError, match="nowhere holds no pretrained encoder"):
        run(tmp_path / "nowhere", data)
    with pytest.raises(InputError, match="nowhere holds no prepared data"):
        run(models, tmp_path / "nowhere")
    (models / "encoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"encoder\.safetensors cannot be read"):
        run(models, data)


def test_a_sweep_is_scored_on_validation_with_test_closed(models, data):
    found = run(models, data)
    network = frozen.load(models / "encoder.safetensors", ENCODER, {})
    shutil.rmtree(data / "test")
    assert protocol.validation_score(network, "image", data, PROTOCOL) == found["linear_validation"]


def test_a_sweep_needs_labels(models, tmp_path):
    write_data(tmp_path / "unlabelled", labels=False)
    network = frozen.load(models / "encoder.safetensors", ENCODER, {})
    with pytest.raises(InputError, match=r"made has none; empty benchmark\.image\.sweeps"):
        protocol.validation_score(network, "image", tmp_path / "unlabelled", PROTOCOL)


def test_a_result_is_the_same_every_time_and_told_as_it_comes(models, data):
    """And is JSON."""
    shares = []
    torch.manual_seed(5)
    found = run(models, data, WHOLE, advance=shares.append)
    torch.manual_seed(6)
    assert json.dumps(run(models, data, WHOLE)) == json.dumps(found)
    assert shares == sorted(set(shares))
    assert len(shares) > 3
    assert 0 < shares[0] < shares[-1] < 1
