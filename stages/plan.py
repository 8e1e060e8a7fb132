"""The first stage: checks params.yaml whole, and writes what every other stage depends on.   python -m stages.plan

plan.json holds, for each stage and each row of a table, its resolved settings and the fingerprint of the code that
they reach; keys.json holds one word for the two, and the seeds. That is what DVC compares, so that a change reruns what
it can change and nothing else. Both are kept in git. (DVC reads the whole file for each stage: hence a short one.)
"""

import json
from pathlib import Path
from typing import Any

from ssl_methods import load_architecture, load_modality

from . import datasets
from .common import files
from .common.command import command
from .common.fingerprint import fingerprint
from .common.settings import RESOLVED, InputError, Settings, pick, read
from .sweeping.space import check_space
from .training import devices

READ = (  # of a modality, by evaluation
    "columns",
    "embed",
    "features",
    "distorted",
    "partner_columns",
    "other_columns",
    "partners",
    "named",
)
PLAN, KEYS = Path("plan.json"), Path("keys.json")


def settings_of(settings: Settings) -> dict[str, Any]:
    """What each stage reads of params.yaml, by stage, modality and entry, resolved and checked."""
    plan: dict[str, Any] = {"prepare": {}, "pretrain": {}, "evaluate": {}, "sweep": {}}
    for modality, bench in settings.benchmark.items():
        plan["prepare"][modality] = prepare_of(settings, modality)
        for stage, names in {"pretrain": bench.methods, "evaluate": bench.methods, "sweep": bench.sweeps}.items():
            plan[stage][modality] = {name: RESOLVE[stage](settings, modality, name) for name in names}
    return plan


def prepare_of(settings: Settings, modality: str) -> dict[str, Any]:
    data = settings.bench(modality).data
    block = pick(f"benchmark.{modality}.data", "data set's block", data, settings.datasets)
    return {"data": data, "settings": datasets.check(data, block or {})}


def pretrain_of(settings: Settings, modality: str, name: str) -> dict[str, Any]:
    entry = settings.entry(modality, name)
    return entry.model_dump(exclude={"modality": True, "name": True, "training": set(RESOLVED)})


def evaluate_of(settings: Settings, modality: str, name: str) -> dict[str, Any]:
    return {
        "encoder": settings.entry(modality, name).encoder,
        "protocol": settings.evaluation.model_dump(),
        "mapped": settings.seeds[0],  # the seed whose map the page shows
    }


def sweep_of(settings: Settings, modality: str, name: str) -> dict[str, Any]:
    where = f"benchmark.{modality}.sweeps"
    sweep = pick(where, "sweep", name, settings.sweeps)
    if name not in settings.bench(modality).methods:
        raise InputError(f"{where}: {name} is not among its methods; take it out, or put it there too")
    check_space(settings.entry(modality, name), sweep)
    return {
        "entry": pretrain_of(settings, modality, name),
        "sweep": sweep.model_dump(),
        "protocol": settings.evaluation.model_dump(),
    }


RESOLVE = {"prepare": prepare_of, "pretrain": pretrain_of, "evaluate": evaluate_of, "sweep": sweep_of}


def fingerprinted(plan: dict[str, Any], root: Path) -> dict[str, Any]:
    """The plan, with the fingerprint of the code that each row reaches; `root` is the repository."""
    pretrain = ["stages.training.loop:train", "stages.training.record:write", "stages.training.record:record"]
    evaluate = ["stages.measures.protocol:evaluate"]
    sweep = ["stages.sweep:score", "stages.sweep:adoption", "stages.sweeping.outcome:write"]
    sweep += [f"stages.sweeping.study:{name}" for name in ("DrawSampler", "draw", "results_of")]
    for modality, block in plan["prepare"].items():
        tables = sorted((root / "stages/datasets").glob("*.csv"))
        prepare = ["stages.prepare:prepare", f"stages.datasets.{block['data']}:load"]
        block["code"] = fingerprint(prepare, root, files=tables)
        for block in plan["pretrain"][modality].values():
            block["code"] = fingerprint([*pretrain, method(block), network(block)], root)
        for block in plan["evaluate"][modality].values():
            block["code"] = fingerprint([*evaluate, *embedding(modality), network(block)], root)
        for block in plan["sweep"][modality].values():
            entry = block["entry"]
            roots = [*sweep, method(entry), *embedding(modality), network(entry)]
            block["code"] = fingerprint(roots, root)
    plan["report"] = {
        "code": fingerprint(["stages.report"], root, files=sorted((root / "reports/templates").iterdir()))
    }
    return plan


def keys_of(plan: dict[str, Any]) -> dict[str, Any]:
    """One short word that stands for each row. DVC stores it with every stage, and rewrites all of that many times."""
    keys = {
        stage: {
            modality: {name: devices.key_of(row) for name, row in rows.items()}
            for modality, rows in plan[stage].items()
        }
        for stage in ("pretrain", "evaluate", "sweep")
    }
    prepare = {modality: devices.key_of(block) for modality, block in plan["prepare"].items()}
    return {"prepare": prepare, **keys, "report": devices.key_of(plan["report"])}


def embedding(modality: str) -> list[str]:
    """How evaluation reads features and what it looks for with them, which it finds by name."""
    there = vars(load_modality(modality))
    return [f"ssl_methods.modalities.{modality}:{name}" for name in READ if name in there]


def network(block: dict[str, Any]) -> str:
    name = block["encoder"]["architecture"]
    return f"{load_architecture(name).__module__}:{name}"


def method(block: dict[str, Any]) -> str:
    return f"ssl_methods.{block['family']}.{block['method']}"


def lookup(stage: str, *keys: str) -> dict[str, Any]:
    """One block of plan.json, by modality and entry. Raises InputError where params.yaml says otherwise by now."""
    wanted = json.loads(json.dumps(RESOLVE[stage](read(), *keys)))  # as the file has it: a tuple is a list there
    found = json.loads(PLAN.read_text(encoding="utf-8"))[stage] if PLAN.exists() else {}
    for key in keys:
        found = found.get(key, {})
    if {k: v for k, v in found.items() if k != "code"} != wanted:
        raise InputError(
            f"{PLAN} does not have {stage} {' '.join(keys)} as params.yaml has it: list it under `benchmark`, "
            "then run `dvc repro plan`, or simply `dvc repro`"
        )
    return found


def main() -> None:
    settings, root = read(), Path(__file__).parent.parent
    plan = settings_of(settings)
    profiles = [settings.training[bench.training] for bench in settings.benchmark.values()]
    for block in (*profiles, settings.evaluation):
        devices.choose(block.device)
    plan = fingerprinted(plan, root)
    files.write_json(PLAN, plan)
    files.write_json(KEYS, {"seeds": settings.seeds, **keys_of(plan)})


if __name__ == "__main__":
    command(main)
