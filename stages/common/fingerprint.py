"""What a result depends on in this repository's own code, as one short hash.

    python -m stages.common.fingerprint ssl_methods.contrastive.simclr stages.training.loop:train

The command shows what the hash is made of. DVC does not follow Python imports; this reads the source, without running
it, and follows every name to its definition.
What no root reaches does not count; nor do comments, docstrings, layout, and the order of functions and classes.

The unit is a statement at the top level of a module (see source.py). A definition (function, class, assignment, import)
counts when its name is reached. All else (a loop, a call, `X.y = 3`) counts as soon as code that is reached imports its
module; only `if __name__ == "__main__":` waits for the whole module. An external import (torch) counts as what the name
means. In doubt a dependency counts: a needless rerun costs time, a missed one costs the truth.

Not seen: modules imported by a computed name (give them as roots), names inside strings, what `x = call()` does besides
binding x, and data files that code reads (give them as `files`).
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from .command import command
from .settings import InputError
from .source import ON_IMPORT, Import, Module, Statement, digest, read_module


def fingerprint(roots: Iterable[str], source: Path, files: Iterable[Path] = ()) -> str:
    """12 hex digits that change when the code that `roots` reach does, or the name or the bytes of one of `files`.

    Args:
        roots: "package.module" for a whole module, "package.module:name" for one definition of it.
        source: the folder that holds the packages; what is not found in it is external.

    Raises:
        InputError: for a root, a file or an import within the repository that does not exist, and for invalid syntax.
    """
    parts = [f"{statement.key} {statement.hash}" for statement in _reach(roots, source)]
    for file in sorted(files):
        if not file.is_file():
            raise InputError(f"{file} not found, but a fingerprint counts it in")
        parts.append(f"{file.name} {digest(file.read_bytes())}")
    return digest("\n".join(parts).encode())


def reached(roots: Iterable[str], source: Path) -> dict[str, str]:
    """{"module:name": hash of what binds it} for all that a fingerprint is made of: to see why it changed."""
    statements = sorted(_reach(roots, source), key=lambda s: s.key)
    groups = groupby(statements, key=lambda s: s.key)
    return {key: digest("".join(s.hash for s in group).encode()) for key, group in groups}


def _reach(roots: Iterable[str], source: Path) -> list[Statement]:
    search = _Search(source)
    for root in roots:
        search.start(root)
    search.run()
    return sorted(search.found, key=lambda s: (s.module, s.position, s.name, s.hash))


class _Search:
    """Follows names through modules: `found` is what it has reached, `waiting` are those still to be read."""

    def __init__(self, source: Path):
        self.source = source
        self.modules: dict[str, Module | None] = {}
        self.found: set[Statement] = set()
        self.waiting: list[Statement] = []
        self.resolved: set[tuple[str, ...]] = set()

    def start(self, root: str) -> None:
        name, _, definition = root.partition(":")
        module = self.load(name)
        if module is None:
            raise InputError(f"{root}: there is no module {name} in {self.source.resolve()}")
        if definition:
            self.check(Import(definition, name, definition, name), importer=f"root {root}")
            self.enter(name, [definition])
            return
        for statement in module.statements:
            self.visit(statement)
        used = {name for statement in module.statements for name, *_ in statement.references}
        for name in module.bindings.keys() - used:  # an import that the module itself does not use is there for others
            self.resolve(module, name, [])

    def run(self) -> None:
        while self.waiting:
            statement = self.waiting.pop()
            for wanted in statement.imports:
                self.check(wanted, statement.module)
                if wanted.bound == "*":
                    self.enter(wanted.module, [])
            for name, *attributes in statement.references:
                self.resolve(self.modules[statement.module], name, attributes)
                self.follow(statement, name, attributes)  # an import inside a function binds a name there alone

    def visit(self, statement: Statement) -> None:
        if statement not in self.found:
            self.found.add(statement)
            self.waiting.append(statement)

    def load(self, name: str) -> Module | None:
        """Imports a module after the packages around it: what they run counts. None where `source` does not hold it."""
        if name not in self.modules:
            package = name.rpartition(".")[0]
            outside = package and self.load(package) is None
            module = self.modules[name] = None if outside else read_module(self.source, name)
            if module:
                for wanted in module.imports:
                    self.check(wanted, name)
                self.resolve(module, ON_IMPORT, [])
        return self.modules[name]

    def check(self, wanted: Import, importer: str) -> None:
        """Loads what an import names. Raises InputError where that should be in the repository, but is not."""
        needed = wanted.loads
        module = self.load(needed)
        if module and wanted.name and not module.bindings.keys() & {wanted.name, "*", "__getattr__"}:
            needed = f"{needed}.{wanted.name}"
            module = self.load(needed)
        if module is None and self.load(needed.partition(".")[0]):
            raise InputError(f"{importer} needs {needed}, which is not in {self.source.resolve()}")

    def resolve(self, module: Module, name: str, attributes: Sequence[str]) -> None:
        """`name.attributes` as the top level of `module` knows it."""
        key = (module.name, name, *attributes)
        if key not in self.resolved:
            self.resolved.add(key)
            for statement in module.bindings.get(name, []):
                self.visit(statement)
                self.follow(statement, name, attributes)

    def follow(self, statement: Statement, name: str, attributes: Sequence[str]) -> None:
        """`name.attributes`, where an import in `statement` binds the name."""
        for wanted in statement.imports:
            if wanted.bound == name:
                self.enter(wanted.module, [wanted.name, *attributes] if wanted.name else attributes)

    def enter(self, name: str, path: Sequence[str]) -> None:
        """What `path` means in a module: a definition, something in a submodule or, in doubt, the whole module."""
        module = self.load(name)
        if module is None:
            return
        if path and path[0] in module.bindings:
            self.resolve(module, path[0], path[1:])
        elif path and self.load(f"{name}.{path[0]}"):
            self.enter(f"{name}.{path[0]}", path[1:])
        else:
            for bound in module.bindings:
                self.resolve(module, bound, [])


def main() -> None:
    parser = argparse.ArgumentParser(description="What a fingerprint is made of: every statement that the roots reach.")
    parser.add_argument("root", nargs="+", help="package.module, or package.module:name")
    roots = parser.parse_args().root
    for key, content in reached(roots, Path()).items():
        print(content, key)
    print(fingerprint(roots, Path()), "together")


if __name__ == "__main__":
    command(main)
