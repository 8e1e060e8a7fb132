"""How the code is laid out: short files, no circles, and a method is one file and one block."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from stages.common.source import read_module

ROOT = Path(__file__).parents[2]
FILES = sorted(file for package in ("ssl_methods", "stages") for file in (ROOT / package).rglob("*.py"))
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
NO_METHODS = ("ssl_methods", "ssl_methods.encoders", "ssl_methods.modalities", "ssl_methods.parts")


def imports(module: str) -> set[str]:
    """The modules of this repository that one imports, wherever in its file."""
    found = [wanted for statement in read_module(ROOT, module).statements for wanted in statement.imports]
    within = {f"{wanted.module}.{wanted.name}" for wanted in found} & MODULES.keys()  # from folder import module
    return within | {w.loads for w in found if w.loads in MODULES and f"{w.module}.{w.name}" not in MODULES} - {module}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return {module: imports(module) for module in MODULES}


def test_files_are_short_and_folders_are_not_crowded():
    lines = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    files = Counter(str(file.parent) for file in FILES if file.name != "__init__.py")
    assert {file: n for file, n in lines.items() if n > 350} == {}
    assert {folder: n for folder, n in files.items() if n > 14} == {}


def test_no_files_import_each_other_in_a_circle(graph):
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_imports_run_downwards(graph):
    for module, needed in graph.items():
        folder = module.rpartition(".")[0]
        if module.startswith("ssl_methods"):
            assert not any(other.startswith("stages") for other in needed), module
            if folder not in NO_METHODS and module not in NO_METHODS:  # a method, which imports no other
                assert all(other in NO_METHODS or other.rpartition(".")[0] in NO_METHODS for other in needed), module
        if module == "stages.evaluate" or module.startswith("stages.measures"):
            methods = [other for other in needed if other.startswith("ssl_methods")]
            assert all(other in NO_METHODS or other.rpartition(".")[0] in NO_METHODS for other in methods), module


METHOD = '''
"""Brightness: the encoder's first feature is how bright a picture is."""

from torch import nn

from .. import Method, Positive


class Brightness(Method):
    columns = ("image",)

    def __init__(self, encoder: nn.Module, *, scale: Positive = 1.0):
        super().__init__()
        self.encoder, self.scale = encoder, scale

    def forward(self, batch):
        x = batch["image"].float() / 255  # (N, 3, H, W)
        return (self.encoder(x)[:, 0] - self.scale * x.mean((1, 2, 3))).square().mean(), {}
'''


def test_adding_a_method_is_adding_one_file_and_one_block(tmp_path):
    for folder in ("ssl_methods", "stages", "reports/templates"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for modality, bench in params["benchmark"].items():  # few entries, to be quick
        bench |= {"methods": ["simclr"] if modality == "image" else [], "sweeps": []}

    def keys() -> dict:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "stages.plan"], check=True, cwd=tmp_path)
        return json.loads((tmp_path / "keys.json").read_text(encoding="utf-8"))

    before = keys()
    (tmp_path / "ssl_methods/pretext/brightness.py").write_text(METHOD, encoding="utf-8")
    params["methods"]["brightness"] = {"scale": 2.0}
    params["benchmark"]["image"]["methods"].append("brightness")
    after = keys()
    assert after["pretrain"]["image"].pop("brightness")
    assert after["evaluate"]["image"].pop("brightness")
    assert after == before
