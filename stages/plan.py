"""The first stage: checks params.yaml whole, and writes what every other stage depends on.   python -m stages.plan

plan.json holds, for each stage and each row of a table, its resolved settings and the fingerprint of the code that
they reach. It is what DVC compares, so that a change reruns what it can change and nothing else. It is kept in git.
"""

import json
from pathlib import Path
from typing import Any

import ssl_methods

from . import datasets, files
from .fingerprint import fingerprint
from .settings import Entry, InputError, Settings, command, pick, read

PLAN = Path("plan.json")


def settings_of(settings: Settings) -> dict[str, Any]:
    """What each stage reads of params.yaml, by stage, modality and entry, resolved and checked."""
    plan: dict[str, Any] = {"prepare": {}, "pretrain": {}, "evaluate": {}, "sweep": {}}
    for modality, bench in settings.benchmark.items():
        entries = {entry.name: entry for entry in settings.entries(modality)}
        block = pick(f"benchmark.{modality}.data", "data set's block", bench.data, settings.datasets)
        plan["prepare"][modality] = {"data": bench.data, "settings": datasets.check(bench.data, block or {})}
        plan["pretrain"][modality] = {name: pretrain_of(entry) for name, entry in entries.items()}
        protocol = settings.evaluation.model_dump()
        plan["evaluate"][modality] = {n: {"encoder": e.encoder, "protocol": protocol} for n, e in entries.items()}
        plan["sweep"][modality] = {
            name: {
                "entry": pretrain_of(settings.entry(modality, name)),
                "sweep": pick(f"benchmark.{modality}.sweeps", "sweep", name, settings.sweeps).model_dump(),
                "protocol": protocol,
            }
            for name in bench.sweeps
        }
    return plan


def pretrain_of(entry: Entry) -> dict[str, Any]:
    return entry.model_dump(exclude={"modality": True, "name": True, "training": {"override"}})


def fingerprinted(plan: dict[str, Any], root: Path) -> dict[str, Any]:
    """The plan, with the fingerprint of the code that each row reaches; `root` is the repository."""
    pretrain = [f"stages.pretrain:{name}" for name in ("train", "write", "record")]
    evaluate = ["stages.evaluate:evaluate"]
    for modality, block in plan["prepare"].items():
        tables = sorted((root / "stages/datasets").glob(f"{block['data']}_*.csv"))
        prepare = ["stages.prepare:prepare", f"stages.datasets.{block['data']}:load"]
        block["code"] = fingerprint(prepare, root, files=tables)
        for block in plan["pretrain"][modality].values():
            block["code"] = fingerprint([*pretrain, method(block), *network(modality, block)], root)
        for block in plan["evaluate"][modality].values():
            block["code"] = fingerprint([*evaluate, *network(modality, block)], root)
        for block in plan["sweep"][modality].values():
            entry = block["entry"]
            block["code"] = fingerprint(["stages.sweep", method(entry), *network(modality, entry)], root)
    plan["report"] = {
        "code": fingerprint(["stages.report"], root, files=sorted((root / "reports/templates").iterdir()))
    }
    return plan


def network(modality: str, block: dict[str, Any]) -> list[str]:
    """The code that a stage finds by name: how the modality is embedded, and the encoder."""
    return [f"ssl_methods.modalities.{modality}:embed", f"ssl_methods.encoders:{block['encoder']['architecture']}"]


def method(block: dict[str, Any]) -> str:
    return f"ssl_methods.{block['family']}.{block['method']}"


def lookup(*keys: str) -> dict[str, Any]:
    """One block of plan.json. Raises InputError where there is none, or where params.yaml has changed since."""
    found, wanted = json.loads(PLAN.read_text(encoding="utf-8")) if PLAN.exists() else {}, settings_of(read())
    for depth, key in enumerate(keys):
        if key not in wanted:
            raise InputError(ssl_methods.unknown(("stage", "modality", "entry")[depth], key, wanted))
        found, wanted = found.get(key, {}), wanted[key]
    if {k: v for k, v in found.items() if k != "code"} != wanted:
        raise InputError(f"{PLAN} is older than params.yaml; run `dvc repro plan`, or simply `dvc repro`")
    return found


def main() -> None:
    root = Path(__file__).parent.parent
    files.write_json(PLAN, fingerprinted(settings_of(read()), root))


if __name__ == "__main__":
    command(main)
