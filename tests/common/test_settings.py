"""params.yaml: what it resolves to, and what each mistake in it says. One line, before any work."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.common import settings
from stages.common.settings import InputError

ROOT = Path(__file__).parents[2]
PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")


def changed(tmp_path: Path, **changes) -> Path:
    """A params.yaml in which dotted keys (written with __) have other values."""
    content = yaml.safe_load(PARAMS)
    for keys, value in changes.items():
        *parents, last = keys.split("__")
        block = content
        for key in parents:
            block = block[key]
        block[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def mistake(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        plan.settings_of(settings.read(path))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_entry_is_its_own_method_unless_it_names_another(tmp_path):
    path = changed(tmp_path, methods__simclr_hot={"method": "simclr", "temperature": 1.0, "encoder": "vit"})
    entry = settings.read(path).entry("image", "simclr_hot")
    assert (entry.method, entry.family, entry.encoder["name"]) == ("simclr", "contrastive", "vit")
    assert entry.hyper["temperature"] == 1.0
    assert settings.read(path).entry("image", "byol").method == "byol"


def test_what_is_not_given_has_the_papers_default(tmp_path):
    entry = settings.read(changed(tmp_path, methods__simclr={}, training__laptop__override={})).entry("image", "simclr")
    assert entry.hyper == {"width": 128, "temperature": 0.5, "strength": 1.0}


def test_an_override_concerns_one_entry(tmp_path):
    read = settings.read(changed(tmp_path, training__laptop__override={"byol": {"lr": 0.5}}))
    assert read.entry("image", "byol").training.lr == 0.5
    assert read.entry("image", "simclr").training.lr != 0.5


def test_an_override_may_hold_hyper_parameters_and_gives_way_to_the_entrys_own(tmp_path):
    override = {"simclr": {"temperature": 0.9, "strength": 0.3, "lr": 0.5}}
    path = changed(
        tmp_path,
        methods__simclr={"strength": 0.7},
        methods__simclr_hot={"method": "simclr"},
        training__laptop__override=override,
    )
    simclr, hot = (settings.read(path).entry("image", name) for name in ("simclr", "simclr_hot"))
    assert (simclr.hyper["temperature"], simclr.hyper["strength"], simclr.training.lr) == (0.9, 0.7, 0.5)
    assert (hot.hyper["temperature"], hot.hyper["strength"], hot.training.lr) == (0.9, 0.3, 0.5)


def test_the_encoder_is_the_entrys_or_else_the_overrides_or_else_the_profiles(tmp_path):
    override = {"simclr": {"encoder": "resnet18"}}
    path = changed(tmp_path, methods__hot={"method": "simclr", "encoder": "vit"}, training__laptop__override=override)
    entries = {name: settings.read(path).entry("image", name) for name in ("hot", "simclr", "byol")}
    assert {name: entry.encoder["name"] for name, entry in entries.items()} == {
        "hot": "vit",
        "simclr": "resnet18",
        "byol": "small_resnet",
    }
    assert all(entry.training.encoder == entry.encoder["name"] for entry in entries.values())


def test_a_profile_may_have_its_own_encoder_for_a_name(tmp_path):
    read = settings.read(changed(tmp_path, training__laptop__stand_in={"vit": "vit_small"}))
    assert read.entry("image", "mae").encoder["name"] == "vit_small"
    assert read.entry("image", "simclr").encoder["name"] == "small_resnet"


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    """YAML 1.1 takes 1e-3, without a point, for a string."""
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.replace("  simclr: {}", "  simclr: {temperature: 1e-1}", 1), encoding="utf-8")
    if "temperature: 1e-1" not in path.read_text(encoding="utf-8"):
        path = changed(tmp_path, methods__simclr={"temperature": "1e-1"})
    assert settings.read(path).entry("image", "simclr").hyper["temperature"] == 0.1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"benchmark__image__methods": ["simclrr"]}, ["benchmark.image.methods", "simclrr", "did you mean 'simclr"]),
        ({"methods__simclr": {"method": "simcrl"}}, ["methods.simclr", "unknown method 'simcrl'", "'simclr'"]),
        ({"methods__simclr": {"temprature": 1}}, ["methods.simclr.temprature", "did you mean 'temperature'?"]),
        ({"methods__simclr": {"temperature": -0.5}}, ["methods.simclr.temperature", "greater than 0", "-0.5"]),
        ({"methods__simclr": {"temperature": "hot"}}, ["methods.simclr.temperature", "number", "'hot'"]),
        ({"methods__byol": {"tau": 1.5}}, ["methods.byol.tau", "less than or equal to 1", "1.5"]),
        (
            {"methods__mae": {"encoder": "vitt"}},
            ["methods.mae.encoder", "unknown encoder 'vitt'", "did you mean 'vit'?"],
        ),
        ({"encoders__vit": {"patch": 4}}, ["encoders.vit", "architecture"]),
        ({"encoders__vit": {"architecture": "VIT"}}, ["encoders.vit.architecture", "'VIT'", "'ViT'"]),
        ({"encoders__vit__dept": 3}, ["encoders.vit.dept", "did you mean 'depth'?"]),
        ({"benchmark__image__data": "emojis"}, ["benchmark.image.data", "'emojis'", "did you mean 'emoji'?"]),
        ({"datasets__emoji": {"sise": 32}}, ["datasets.emoji.sise", "did you mean 'size'?"]),
        ({"benchmark__image__training": "laptp"}, ["benchmark.image.training", "did you mean 'laptop'?"]),
        ({"training__laptop__batchsize": 3}, ["training.laptop.batchsize", "did you mean 'batch_size'?"]),
        ({"training__laptop__optimizer": "adam"}, ["training.laptop.optimizer", "'adam'", "'adamw'"]),
        ({"training__laptop__override": {"byoll": {}}}, ["training.laptop.override", "did you mean 'byol'?"]),
        (
            {"training__laptop__override": {"byol": {"encoder": "vot"}}},
            ["training.laptop.override.byol.encoder", "did you mean 'vit'?"],
        ),
        ({"training__laptop__override": {"byol": {"lrr": 1}}}, ["training.laptop.override.byol.lrr", "'lr'"]),
        ({"evaluation__neighbors": [5]}, ["evaluation.neighbors", "did you mean 'neighbours'?"]),
        ({"sede": 3}, ["sede", "did you mean 'seeds'?"]),
        ({"seeds": []}, ["seeds", "at least 1 item"]),
        ({"benchmark__image__sweeps": ["moco"]}, ["benchmark.image.sweeps", "unknown sweep 'moco'"]),
    ],
)
def test_a_mistake_names_its_key_and_the_way_out(tmp_path, changes, expected):
    text = mistake(changed(tmp_path, **changes))
    assert [part for part in expected if part not in text] == [], text


@pytest.mark.parametrize("text", ["seeds: [0, 1", "a: b: c", "\tseeds: 1"])
def test_what_is_not_yaml_is_told_with_its_place(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert "is not YAML, line 1" in mistake(path)


def test_a_list_is_no_params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("- 1", encoding="utf-8")
    assert "list" in mistake(path)


def test_a_missing_file_says_where_to_run(tmp_path):
    assert "repository's root" in mistake(tmp_path / "params.yaml")


def test_a_stage_ends_in_one_line_and_exit_code_1():
    run = [sys.executable, "-m", "stages.pretrain", "image", "simclrr"]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert "did you mean 'simclr'?" in ended.stderr
