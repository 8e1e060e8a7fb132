"""What changes a fingerprint, and what does not, on small packages written for each case."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.common.fingerprint import fingerprint, main, reached
from stages.common.settings import InputError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write({"kit/parts.py": text, ...}) -> the folder that holds them; every package gets its __init__.py."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent != tmp_path and not (path.parent / "__init__.py").exists():
                (path.parent / "__init__.py").write_text("")
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return write


def changes(write: Callable[..., Path], files: dict[str, str], edit: dict[str, str], root: str = "kit.method") -> bool:
    """Whether an edit of some of the files changes the fingerprint of `root`."""
    before = fingerprint([root], write(files))
    return fingerprint([root], write(edit)) != before


# ---- What does not count

SHARED = """
EPS = 1e-6

def norm(x):
    return x / (abs(x) + EPS)

def mlp(width, depth=2):
    return [width] * depth
"""


def test_comments_docstrings_and_layout_do_not_count(write):
    plain = "class A:\n    n = 1\n\n    def f(self, x):\n        return {'a': x, 'b': 'text'}\n"
    dressed = (
        '"""Module."""\n# comment\nclass A:\n    """Class."""\n    n = 1  # why\n    """Of n."""\n'
        "    def f( self,\n           x ):\n        '''Function.'''\n        return {\"a\": (x), 'b': u'te' 'xt',}\n"
    )
    assert not changes(write, {"kit/method.py": plain}, {"kit/method.py": dressed})
    assert changes(write, {"kit/method.py": plain}, {"kit/method.py": plain.replace("'b'", "'c'")})


def test_order_of_functions_does_not_count_but_order_of_what_runs_does(write):
    functions = "def a(): pass\ndef b(): pass\n"
    assert not changes(write, {"kit/method.py": functions}, {"kit/method.py": "def b(): pass\ndef a(): pass\n"})
    draws = "rng = iter([1, 2])\na = next(rng)\nb = next(rng)\n"
    assert changes(
        write, {"kit/method.py": draws}, {"kit/method.py": "rng = iter([1, 2])\nb = next(rng)\na = next(rng)\n"}
    )


def test_an_edited_helper_changes_exactly_its_users(write):
    source = write(
        {
            "kit/parts.py": SHARED,
            "kit/one.py": "from .parts import mlp\nx = mlp(3)\n",
            "kit/two.py": "from .parts import norm\nx = norm(3)\n",
            "kit/three.py": "x = 3\n",
        }
    )
    names = ["one", "two", "three"]
    before = [fingerprint([f"kit.{n}"], source) for n in names]
    write({"kit/parts.py": SHARED.replace("abs(x) + EPS", "abs(x) * EPS")})
    after = [fingerprint([f"kit.{n}"], source) for n in names]
    assert [a != b for a, b in zip(after, before, strict=True)] == [False, True, False]


def test_a_definition_that_no_one_uses_does_not_count(write):
    files = {"kit/parts.py": SHARED, "kit/method.py": "from .parts import mlp\nx = mlp(3)\n"}
    extended = (
        "import math\nfrom math import tau as t\n__all__ = ['new']\nNEW = math.pi\ndef new(x): return mlp(NEW * t)\n"
    )
    assert not changes(write, files, {"kit/parts.py": SHARED + extended})


def test_adding_a_module_to_a_package_does_not_count(write):
    files = {"kit/method.py": "import kit\nx = kit\n"}
    assert not changes(write, files, {"kit/other.py": "print('other')\n"})


def test_only_the_attribute_of_a_module_counts(write):
    method = "from . import other\nfrom .low import parts\nother.p.mlp(1)\nparts.mlp(1)\n"
    other = {"kit/other.py": "from .low import parts as p\n", "kit/method.py": method}
    files = {"kit/low/parts.py": SHARED, **other}
    assert not changes(write, files, {"kit/low/parts.py": SHARED.replace("1e-6", "1e-5")})
    assert changes(write, files, {"kit/low/parts.py": SHARED.replace("* depth", "* 3")})


def test_local_names_are_not_the_module_level_ones(write):
    method = """
from . import image

def f(batch):
    image = batch["image"]
    return image, lambda image: image

def listed(batch):
    return [f(image) for image in batch]

def view(x):
    return image.flip(x)

def g(image):
    def inner():
        return image
    return inner
"""
    files = {"kit/image.py": "def flip(x): return x\ndef crop(x): return x", "kit/method.py": method}
    assert not changes(write, files, {"kit/image.py": "def flip(x): return x\ndef crop(x): return -x"})
    assert changes(write, files, {"kit/image.py": "def flip(x): return -x\ndef crop(x): return x"})


# ---- What counts; the root is kit.method:g

F = {"kit/parts.py": "def f(x): return x"}
F_EDITED = {"kit/parts.py": "def f(x): return -x"}

REACHES_F = {  # contents of kit/method.py
    "call": "from .parts import f; g = f(1)",
    "absolute import": "from kit.parts import f; g = f(1)",
    "alias": "from .parts import f as h; g = h(1)",
    "attribute of a module": "from . import parts; g = parts.f(1)",
    "dotted import": "import kit.parts; g = kit.parts.f(1)",
    "dotted import with an alias": "import kit.parts as p; g = p.f(1)",
    "module passed around": "from . import parts; g = getattr(parts, 'f')",
    "attribute that is not written in the module": "from . import parts; g = parts.__dict__['f']",
    "star import": "from .parts import *; g = f(1)",
    "re-export": "from .parts import f as g",
    "decorator": "from .parts import f\n@f\ndef g(): pass",
    "default argument": "from .parts import f\ndef g(f=f): return f(1)",
    "default argument of a lambda": "from .parts import f; g = lambda f=f: f",
    "annotation": "from .parts import f\ndef g(x: f): pass",
    "base class": "from .parts import f\nclass g(f): pass",
    "f-string": "from .parts import f; g = f'{1:{f}}'",
    "import inside a function": """
def g():
    from .parts import f
    f = staticmethod(f)
    return f
""",
    "import of a module inside a function, under another local name": """
def g(parts):
    def h():
        from . import parts
        return parts.f
    return h
""",
    "import inside a class": "class g:\n    from .parts import f",
    "conditional import": """
try:
    from .parts import f
except ImportError:
    f = None
def g():
    return f(1)
""",
    "global name under a local one": """
from .parts import f
def g(f):
    def h():
        global f
        return f
    return h
""",
    "name that a class assigns from the module's, past a local one": """
from .parts import f
def g(f):
    class G:
        f = f
    return G
""",
    "first iterable of a comprehension": "from .parts import f\ndef g(): return [f for f in f(1)]",
    "name that only an inner scope assigns": """
from .parts import f
def g():
    def inner():
        f = 1
        return f
    return [f for f in ()], inner(), f(1)
""",
    "what a side effect uses": "from .parts import f; g = 1\nif True: f(1)",
}


@pytest.mark.parametrize("method", REACHES_F.values(), ids=REACHES_F)
def test_a_definition_counts_however_it_is_reached(write, method):
    assert changes(write, {**F, "kit/method.py": method}, F_EDITED, "kit.method:g")


REACHES_F_THROUGH = {  # other files, and contents of kit/method.py
    "re-export by the package": ({"kit/__init__.py": "from .parts import f as h"}, "from . import h; g = h(1)"),
    "module in a module": ({"kit/other.py": "from . import parts as p"}, "from . import other; g = other.p.f(1)"),
    "star import of another": ({"kit/other.py": "from .parts import *"}, "from .other import f; g = f(1)"),
    "folder below": ({"kit/deep/other.py": "from ..parts import f"}, "from .deep.other import f; g = f(1)"),
    "three modules": (
        {"kit/a.py": "from . import parts\ndef a(): return parts.f(1)", "kit/b.py": "from .a import a\ndef b(): a()"},
        "from .b import b\ndef g(): b()",
    ),
    "cycle": ({"kit/a.py": "from . import method\nfrom .parts import f"}, "from .a import f\ndef g(): f()"),
    "cycle of names": ({"kit/a.py": "from .method import g as h"}, "from .a import h as g; from .parts import f\nf(g)"),
}


@pytest.mark.parametrize(("others", "method"), REACHES_F_THROUGH.values(), ids=REACHES_F_THROUGH)
def test_a_definition_counts_through_other_modules(write, others, method):
    assert changes(write, {**F, **others, "kit/method.py": method}, F_EDITED, "kit.method:g")


EDITS = {  # kit/parts.py, the same edited, and kit/method.py
    "constant of a helper": (SHARED, SHARED.replace("1e-6", "1e-5"), "from .parts import norm; g = norm(1)"),
    "side effect": ("x = {}; x.update(a=1)", "x = {}; x.update(a=2)", "from .parts import x; g = x"),
    "side effect, with nothing imported": ("print(1)", "print(2)", "import kit.parts; g = 1"),
    "attribute": ("def f(): pass\nf.x = 1", "def f(): pass\nf.x = 2", "from .parts import f; g = f"),
    "what a side effect uses": ("N = 1; print(N); x = 0", "N = 2; print(N); x = 0", "from .parts import x; g = x"),
    "loop": ("t = []\nfor i in 'ab': t += [i]", "t = []\nfor i in 'ac': t += [i]", "from .parts import t; g = t"),
    "augmented assignment": ("t = [1]; t += [2]", "t = [1]; t += [3]", "from .parts import t; g = t"),
    "first of two bindings": ("t = 1; t = str(t)", "t = 2; t = str(t)", "from .parts import t; g = t"),
    "two of a name exchanged": (
        "def f(): return 1\ndef f(): return 2",
        "def f(): return 2\ndef f(): return 1",
        "from .parts import f; g = f",
    ),
    "two kinds of a name exchanged": ("f = 1\ndef f(): pass", "def f(): pass\nf = 1", "from .parts import f; g = f"),
    "star import and a name exchanged": (
        "f = 3\nfrom .low import *",
        "from .low import *\nf = 3",
        "from .parts import f; g = f",
    ),
    "star imports exchanged": (
        "from .low import *\nfrom .high import *",
        "from .high import *\nfrom .low import *",
        "from .parts import f; g = f",
    ),
    "one of several names": ("a, b = 1, 2", "a, b = 3, 2", "from .parts import a; g = a"),
    "module's own __getattr__": (
        "def __getattr__(name): return 1",
        "def __getattr__(name): return 2",
        "from .parts import f; g = f",
    ),
    "global name of a function": (
        "def start():\n    global x\n    x = 1",
        "def start():\n    global x\n    x = 2",
        "from .parts import x; g = x",
    ),
    "external name": ("from math import sin as f", "from math import cos as f", "from .parts import f; g = f(1)"),
    "external module": ("import math as m; x = m.e", "import cmath as m; x = m.e", "from .parts import x; g = x"),
    "aliases exchanged": (
        "from .low import f as a, g as b\nx = a - b",
        "from .low import g as a, f as b\nx = a - b",
        "from .parts import x; g = x",
    ),
}


@pytest.mark.parametrize(("parts", "edited", "method"), EDITS.values(), ids=EDITS)
def test_an_edit_counts(write, parts, edited, method):
    files = {
        "kit/low.py": "f = 1; g = 2",
        "kit/high.py": "f = 2; g = 3",
        "kit/parts.py": parts,
        "kit/method.py": method,
    }
    assert changes(write, files, {"kit/parts.py": edited}, "kit.method:g")


def test_what_a_whole_module_imports_for_others_counts(write):
    assert changes(write, {**F, "kit/method.py": "from .parts import f"}, F_EDITED)


def test_a_package_runs_when_a_module_in_it_does(write):
    assert changes(write, {"kit/method.py": "y = 1"}, {"kit/__init__.py": "print('hello')"})
    assert not changes(write, {"kit/method.py": "y = 1"}, {"kit/__init__.py": "print('hello')\ndef unused(): pass"})


def test_a_package_needs_no_init(write):
    source = write({"bare/sub/parts.py": "N = 1", "kit/method.py": "from bare.sub import parts; y = parts.N"})
    (source / "bare/sub/__init__.py").unlink()
    before = fingerprint(["kit.method"], source)
    (source / "bare/sub/parts.py").write_text("N = 2")
    assert fingerprint(["kit.method"], source) != before


def test_only_the_whole_module_contains_what_it_does_as_a_program(write):
    files = {
        "kit/parts.py": SHARED + "if __name__ == '__main__':\n    mlp(1)\n",
        "kit/method.py": "from .parts import norm\nnorm(1)\n",
    }
    edit = {"kit/parts.py": SHARED + "if __name__ == '__main__':\n    mlp(2)\n"}
    assert not changes(write, files, edit)
    assert changes(write, files, edit, root="kit.parts")


def test_relative_and_absolute_imports_are_the_same(write):
    files = {**F, "kit/method.py": "from .parts import f\ny = f(1)\n"}
    assert not changes(write, files, {"kit/method.py": "from kit.parts import f\ny = f(1)\n"})


def test_a_definition_as_root(write):
    assert not changes(
        write, {"kit/parts.py": SHARED}, {"kit/parts.py": SHARED.replace("depth=2", "depth=3")}, "kit.parts:norm"
    )
    assert changes(write, {"kit/parts.py": SHARED}, {"kit/parts.py": SHARED.replace("1e-6", "1e-5")}, "kit.parts:norm")


def test_reached_says_what_counts(write):
    source = write(
        {
            "kit/parts.py": "import torch.nn.functional as F\n" + SHARED + "F.flag = True\n",
            "kit/method.py": "from .parts import norm as n\ny = n(3)\n",
        }
    )
    expected = {
        "kit.method:y",
        "kit.method:n",
        "kit.parts:norm",
        "kit.parts:EPS",
        "kit.parts:<on import>",
        "kit.parts:F",
    }
    before = reached(["kit.method"], source)
    assert before.keys() == expected
    write({"kit/parts.py": "import torch.nn.functional as F\n" + SHARED.replace("1e-6", "1e-5") + "F.flag = True\n"})
    after = reached(["kit.method"], source)
    assert {key for key in expected if before[key] != after[key]} == {"kit.parts:EPS"}


def test_several_roots_are_one_set(write):
    source = write({"kit/parts.py": SHARED})
    assert fingerprint(["kit.parts:mlp", "kit.parts:norm"], source) == fingerprint(
        ["kit.parts:norm", "kit.parts:mlp"], source
    )
    assert fingerprint(["kit.parts:mlp", "kit.parts:norm"], source) != fingerprint(["kit.parts:norm"], source)


def test_files_count_by_their_bytes(write):
    source = write({"kit/method.py": "y = 1\n", "kit/table.csv": "a,b\n"})
    table = source / "kit/table.csv"
    before = fingerprint(["kit.method"], source, [table])
    assert before != fingerprint(["kit.method"], source)
    table.write_text("a,c\n")
    assert before != fingerprint(["kit.method"], source, [table])
    assert fingerprint(["kit.method"], source, [table, source / "kit/method.py"]) == fingerprint(
        ["kit.method"], source, [source / "kit/method.py", table]
    )


def test_is_the_same_in_every_version_of_python(write):
    text = """
class A(dict):
    def f(self, *a, k, e="\U0001fae8", **o):
        return None, {**o}, f"{a!r:>{k}} {e=} {k:}", 1_0, .5, -2j, a[1:, ...], b"\\xff"
"""
    assert fingerprint(["kit.method"], write({"kit/method.py": text})) == "20fca5345c4e"


# ---- Mistakes


@pytest.mark.parametrize(
    ("root", "method", "message"),
    [
        ("kit.absent", "", "kit.absent: there is no module kit.absent in "),
        ("absent", "", "absent: there is no module absent in "),
        ("kit.method:g", "def f(): pass\n", "root kit.method:g needs kit.method.g, which is not in "),
        ("kit.method", "from .absent import f\n", "kit.method needs kit.absent, which is not in "),
        ("kit.method", "from . import absent\n", "kit.method needs kit.absent, which is not in "),
        ("kit.method", "import kit.absent\n", "kit.method needs kit.absent, which is not in "),
        ("kit.method", "from .parts import absent\n", "kit.method needs kit.parts.absent, which is not in "),
        (
            "kit.method",
            "def f():\n    from .parts import absent\n",
            "kit.method needs kit.parts.absent, which is not in ",
        ),
        ("kit.method", "x = 1\nfrom ... import f\n", "method.py, line 2: relative import from outside of any package"),
        ("kit.method", "x = 1\ndef f(:\n", "method.py, line 2: invalid syntax"),
    ],
)
def test_mistakes_are_named(write, root, method, message):
    source = write({**F, "kit/method.py": method})
    with pytest.raises(InputError, match=re.escape(message)):
        fingerprint([root], source)


def test_a_missing_file_is_named(write):
    source = write({"kit/method.py": "y = 1\n"})
    with pytest.raises(InputError, match=r"table\.csv not found"):
        fingerprint(["kit.method"], source, [source / "table.csv"])


# ---- This repository


def modules(package: str) -> list[str]:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    names = [".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", [*modules("ssl_methods"), *modules("stages")])
def test_every_module_here_has_a_fingerprint(name):
    assert re.fullmatch("[0-9a-f]{12}", fingerprint([name], REPOSITORY))


def test_prints_what_a_fingerprint_is_made_of(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["fingerprint", "stages.common.fingerprint:fingerprint"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith(" stages.common.settings:InputError") for line in lines)
    assert lines[-1] == f"{fingerprint(['stages.common.fingerprint:fingerprint'], REPOSITORY)} together"
