"""Python source as statements: what each one defines, what it refers to, and a hash of what it says.

The unit is a statement at the top level of a module; of `from m import a, b`, one name. Nothing is executed.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .settings import InputError

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef)
ON_IMPORT = "<on import>"  # the name that statements have which run whenever their module is imported
MAIN = "<as a program>"


class Import(NamedTuple):
    """`from module import name as bound`. Without a name it is the module; `import a.b.c` means a, but loads a.b.c."""

    bound: str
    module: str
    name: str | None
    loads: str


@dataclass(eq=False)
class Statement:
    """One statement of a module's top level; of `from m import a, b`, one name."""

    module: str
    name: str  # what it defines
    binds: set[str]
    position: int  # in its module, or 0 where moving it changes nothing
    movable: bool  # a function, a class or an import; where nothing else binds its name, moving it changes nothing
    hash: str
    imports: list[Import]  # anywhere inside it
    references: set[tuple[str, ...]]  # ("image", "crop") for `image.crop`, where the module or an import binds `image`

    @property
    def key(self) -> str:
        return f"{self.module}:{self.name}"


@dataclass(eq=False)
class Module:
    name: str
    imports: list[Import]  # those that run whenever it is imported
    statements: list[Statement]
    bindings: dict[str, list[Statement]]  # name -> every statement that binds it


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def read_module(source: Path, name: str) -> Module | None:
    """The module `name`, or None where the folder `source` does not hold it. Raises InputError for invalid syntax."""
    folder = source.joinpath(*name.split("."))
    file = folder.with_name(f"{folder.name}.py")
    if (folder / "__init__.py").is_file():
        return _parse(name, name, folder / "__init__.py", (folder / "__init__.py").read_bytes())
    if file.is_file():
        return _parse(name, name.rpartition(".")[0], file, file.read_bytes())
    if folder.is_dir() and any(folder.rglob("*.py")):  # a package without __init__.py
        return _parse(name, name, folder, b"")
    return None


@cache
def _parse(name: str, package: str, path: Path, text: bytes) -> Module:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    module = Module(name, [], [], {})
    for position, node in enumerate(tree.body, 1):
        imports = list(_imports(node, package, path))
        if isinstance(node, ast.Import | ast.ImportFrom):
            module.imports.extend(imports)
            module.statements.extend(_import_statement(name, position, wanted) for wanted in imports)
        elif not _is_text(node):
            module.statements.append(_statement(name, position, node, imports))
    for statement in module.statements:
        for bound in statement.binds:
            module.bindings.setdefault(bound, []).append(statement)
    for statement in module.statements:
        known = module.bindings.keys() | {wanted.bound for wanted in statement.imports}
        statement.references = {reference for reference in statement.references if reference[0] in known}
        if statement.movable and all(len(module.bindings[bound]) == 1 for bound in statement.binds):
            statement.position = 0
    return module


def _import_statement(module: str, position: int, wanted: Import) -> Statement:
    binds = {"*", ON_IMPORT} if wanted.bound == "*" else {wanted.bound}
    content = digest(ascii(tuple(wanted)).encode())
    return Statement(module, wanted.bound, binds, position, wanted.bound != "*", content, [wanted], set())


def _statement(module: str, position: int, node: ast.stmt, imports: list[Import]) -> Statement:
    content, references = digest(_canonical(node).encode()), set(_references(node))
    inner = list(ast.walk(node))
    binds = {name for n in inner if isinstance(n, ast.Global) for name in n.names}
    if isinstance(node, DEFINITIONS):
        name = node.name
        binds.add(name)
        unread = {wanted.bound for wanted in imports} - {name for name, *_ in references}
        references |= {(name,) for name in unread}  # a class's import, which may be read as its attribute
    else:
        binds.update(*(_bound(n) for n in inner))
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and not any(_is_place(n) for n in inner):
            name = ", ".join(sorted(binds))
        else:
            name = MAIN if _is_main_guard(node) else ON_IMPORT
            binds.add(name)
    return Statement(module, name, binds, position, isinstance(node, DEFINITIONS), content, imports, references)


def _imports(node: ast.stmt, package: str, path: Path) -> Iterator[Import]:
    """Every import inside a statement, in absolute terms."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            for alias in inner.names:
                meant = alias.name if alias.asname else alias.name.partition(".")[0]
                yield Import(alias.asname or meant, meant, None, alias.name)
        elif isinstance(inner, ast.ImportFrom):
            around = package.split(".") if package and inner.level else []
            if inner.level > len(around):
                raise InputError(f"{path}, line {inner.lineno}: relative import from outside of any package")
            base = around[: len(around) - inner.level + 1]
            module = ".".join([*base, inner.module] if inner.module else base)
            for alias in inner.names:
                name = None if alias.name == "*" else alias.name
                yield Import(alias.asname or alias.name, module, name, module)


def _references(node: ast.AST, local: frozenset[str] = frozenset()) -> Iterator[tuple[str, ...]]:
    """(name, attribute, ...) for every name inside `node`, but for those that are local to a function."""
    base, attributes = node, []
    while isinstance(base, ast.Attribute):
        attributes.insert(0, base.attr)
        base = base.value
    if isinstance(base, ast.Name):
        if base.id not in local:
            yield (base.id, *attributes)
        return
    inside, body = local, []
    if isinstance(node, FUNCTIONS):
        body = node.body if isinstance(node.body, list) else [node.body]
        own = list(_own_scope(body))
        parameters = {n.arg for n in ast.iter_child_nodes(node.args) if isinstance(n, ast.arg)}
        inside = local.union(parameters, *(_bound(n) for n in own)).difference(*(_from_outside(n) for n in own))
    elif isinstance(node, ast.ClassDef):
        inside, body = frozenset(), node.body  # a name that a class assigns may be the module's until then
    elif isinstance(node, COMPREHENSIONS):
        yield from _references(node.generators[0].iter, local)
        body = list(ast.iter_child_nodes(node))
        inside = local.union(*(_bound(n) for n in _own_scope([part.target for part in node.generators])))
    for child in ast.iter_child_nodes(node):
        yield from _references(child, inside if child in body else local)


def _own_scope(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes inside the given ones, but for those in the scopes of inner functions, classes and comprehensions."""
    for node in nodes:
        yield node
        if not isinstance(node, SCOPES):
            yield from _own_scope(ast.iter_child_nodes(node))


def _bound(node: ast.AST) -> set[str]:
    """The names that this very node binds in its scope."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    if isinstance(node, ast.alias):
        return {node.asname or node.name.partition(".")[0]}
    if isinstance(node, (*DEFINITIONS, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        return {node.name}
    return set()


def _from_outside(node: ast.AST) -> set[str]:
    """The names that this very node, though inside a function, takes from the module or from another one."""
    if isinstance(node, ast.Global):
        return set(node.names)
    return _bound(node) if isinstance(node, ast.alias) else set()


def _is_place(node: ast.AST) -> bool:
    """The left side of `a.b = 1` or `a[0] = 1`, which binds no name, but changes what one means."""
    return isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store)


def _is_text(node: ast.AST) -> bool:
    """A docstring, or any other string that is a statement: it does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_empty_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) == "__name__ == '__main__'"


def _canonical(node: object) -> str:
    """A syntax tree as text.

    Unlike `ast.dump` and `ast.unparse`, it is the same for every Python from 3.11 on: fields that are empty, which
    versions add and leave out, are left out, and characters are escaped, which `repr` does as its Unicode version says.
    """
    if isinstance(node, ast.Constant):
        return ascii(node.value)
    if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts into some f-strings
        return f"JoinedStr({_canonical([part for part in node.values if not _is_empty_text(part)])})"
    if isinstance(node, ast.AST):
        fields = ((field, _canonical(value)) for field, value in ast.iter_fields(node) if field != "ctx")
        return f"{type(node).__name__}({', '.join(f'{field}={text}' for field, text in fields if text)})"
    if isinstance(node, list):
        items = [_canonical(item) for item in node if not _is_text(item)]
        return f"[{', '.join(items)}]" if items else ""
    return "" if node is None else ascii(node)
