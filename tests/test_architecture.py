from __future__ import annotations

import ast
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import featmap

SOURCE = Path(__file__).resolve().parent.parent / "featmap"
FILES = sorted(SOURCE.rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


ROOMS: dict[str, set[str]] = {  # a room, and the rooms that it may import; every room may import flat modules
    "network": set(),
    "stats": set(),
    "plotting": set(),
    "optimize": {"network"},
    "runs": {"optimize", "network", "stats", "plotting"},
    "mapping": {"runs", "optimize", "network", "stats", "plotting"},
    "interaction": {"runs", "optimize", "network", "stats", "plotting"},
    "report": {"mapping", "interaction", "runs", "optimize", "network", "stats", "plotting"},
    "validation": {"report", "mapping", "interaction", "runs", "optimize", "network", "stats", "plotting"},
    "cli": {"validation", "report", "mapping", "interaction", "runs", "optimize", "network", "stats", "plotting"},
}
FLAT = {"__init__", "__main__", "errors", "files", "image_ops", "image_shape", "rng"}
LONGEST_CHAIN = 12
PUBLIC_NAMES = 19  # the commands, what they take (values, networks, units) and the base of the errors
FLOORS = {1e-6, 1e-9, 1e-10, 1e-12}


def name_of(path: Path) -> str:
    """``featmap/network/unit.py`` is ``network.unit``."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = {name_of(p): p for p in FILES if p.stem != "__init__"}


def imported(path: Path) -> set[str]:
    """The modules of featmap that a file imports, anywhere in it, for types too."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("featmap.") for a in node.names if a.name.startswith("featmap.")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "featmap":
            base = (node.module or "").partition(".")[2]
            inside = {f"{base}.{a.name}".lstrip(".") for a in node.names}
            found |= {name if name in MODULES else base for name in inside}
    return found & set(MODULES)


def room(name: str) -> str:
    return name.partition(".")[0] if "." in name else ""


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_follow_the_order_of_the_rooms(name: str) -> None:
    allowed = {"", room(name)} | ROOMS.get(room(name), set())
    assert {other for other in imported(MODULES[name]) if room(other) not in allowed} == set()


def test_the_top_level_holds_rooms_and_flat_modules() -> None:
    assert {p.stem for p in SOURCE.glob("*.py")} <= FLAT
    assert {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name not in ("__pycache__", "_data")} == set(ROOMS)
    assert len([p for p in SOURCE.iterdir() if p.name not in ("__pycache__", "_data")]) <= 18


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_has_five_to_fifteen_modules(name: str) -> None:
    assert 5 <= len([m for m in MODULES if room(m) == name]) <= 15
    assert (SOURCE / name / "__init__.py").read_text() == ""


def test_modules_import_each_other_in_no_circle_and_no_long_chain() -> None:
    needs = {name: imported(path) - {name} for name, path in MODULES.items()}
    chains: dict[str, list[str]] = {}
    while len(chains) < len(needs):
        ready = [m for m in needs if m not in chains and needs[m] <= chains.keys()]
        assert ready, f"a circle among {sorted(needs.keys() - chains.keys())}"
        for name in ready:
            chains[name] = [name, *max((chains[m] for m in needs[name]), key=len, default=[])]
    longest = max(chains.values(), key=len)
    assert len(longest) <= LONGEST_CHAIN, " > ".join(longest)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


SMALL = 1e-5
STUDIES = sorted((SOURCE.parent / "analyses").rglob("*.py"))


def small_literals(module: ast.Module) -> list[int]:
    """Lines with a number of at most `SMALL` that is not a module's constant with a docstring."""
    explained: set[int] = set()
    for before, after in pairwise(module.body):
        if isinstance(before, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            explained |= {id(n) for n in ast.walk(before)}
    numbers = [n for n in ast.walk(module) if isinstance(n, ast.Constant) and isinstance(n.value, float)]
    return [n.lineno for n in numbers if 0 < n.value <= SMALL and id(n) not in explained]


@pytest.mark.parametrize("path", [*FILES, *STUDIES], ids=lambda p: p.stem)
def test_small_numbers_are_documented_constants(path: Path) -> None:
    # torch's own default, of a batch norm that is called without one
    known = {"float(arguments.get('eps', 1e-05))"}
    module = tree(path)
    defaults = {c.lineno for c in ast.walk(module) if isinstance(c, ast.Call) and ast.unparse(c) in known}
    assert set(small_literals(module)) - defaults == set()


def test_statistics_take_their_floors_from_one_module() -> None:
    homes = [p for p in [*FILES, *STUDIES] if p.parent.name in ("stats", "formulas", "support", "analyses")]
    own = [p.stem for p in homes for n in ast.walk(tree(p)) if ast.unparse(n).startswith("np.finfo(")]
    assert set(own) == {"correlation"}
    small = {p.stem for p in homes for n in ast.walk(tree(p)) if isinstance(n, ast.Constant) and n.value in FLOORS}
    assert small == {"correlation"}


def calls(path: Path, name: str) -> list[ast.Call]:
    return [n for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def test_checkpoints_are_read_as_tensors_only() -> None:
    loads = [c for p in FILES for c in calls(p, "torch.load")]
    assert loads
    for call in loads:
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert given.get("weights_only") == "True"


def test_nothing_is_unpickled_or_evaluated() -> None:
    forbidden = ("pickle.load", "pickle.loads", "eval", "exec", "np.load", "joblib.load", "torch.hub.load")
    assert [(p.stem, name) for p in FILES for name in forbidden if calls(p, name)] == []


def test_no_error_is_swallowed_whole() -> None:
    found = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(s, ast.Pass) for s in node.body):
                found.append(f"{path.stem}:{node.lineno}")
    assert found == []


def public(body: list[ast.stmt], prefix: str = "") -> list[tuple[str, ast.AST]]:
    found: list[tuple[str, ast.AST]] = []
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if any(ast.unparse(d) == "overload" for d in node.decorator_list):
                continue  # the one that they are signatures of is documented
            found.append((f"{prefix}{node.name}", node))
            if isinstance(node, ast.ClassDef):
                found += public(node.body, f"{prefix}{node.name}.")
    return found


def parameters(function: ast.FunctionDef) -> list[str]:
    listed = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    listed += [a for a in (function.args.vararg, function.args.kwarg) if a]
    return [a.arg for a in listed if a.arg not in ("self", "cls")]


LOOKS_AT = {"isinstance", "len"}
PACKING = (ast.Starred, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.keyword, ast.JoinedStr, ast.FormattedValue)
OPEN_KEYWORDS = {  # public functions with keywords of any name, and why
    "optimize.recipe.Recipe.named": "fields of a recipe; the dataclass refuses others",
    "optimize.recipe.Recipe.resolved": "fields of a recipe; the dataclass refuses others",
    "plotting.style.draw_text": "properties of a matplotlib text; matplotlib refuses others",
    "report.html.fill_template": "one for each placeholder of the template",
}


def bound(target: ast.expr, value: ast.expr, name: ast.Name) -> list[str]:
    """The local names to which an assignment gives the value that `name` stands for."""
    pairs = [(target, value)]
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = list(zip(target.elts, value.elts, strict=True))
    return [t.id for t, v in pairs if isinstance(t, ast.Name) and name in ast.walk(v)]


def is_default(test: ast.expr) -> bool:
    """Whether a condition only asks for a missing value, so that a default can be chosen."""
    return isinstance(test, ast.Name) or (
        isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Is, ast.IsNot)) and len(test.ops) == 1
    )


def fate(name: ast.Name, parents: dict[ast.AST, ast.AST]) -> tuple[bool, list[str]]:
    """Whether an appearance of a name reads its value, and the local names that get the value instead."""
    node: ast.AST = name
    while True:
        inner, node = node, parents[node]
        if isinstance(node, (*PACKING, ast.BoolOp)):
            continue
        if isinstance(node, ast.IfExp) and (inner is not node.test or is_default(node.test)):
            continue
        if isinstance(node, ast.Compare) and isinstance(parents[node], ast.IfExp) and is_default(node):
            continue
        if isinstance(node, ast.Call) and inner is not node.func:
            return ast.unparse(node.func) in LOOKS_AT, []
        if isinstance(node, ast.Assign):
            names = [n for target in node.targets for n in bound(target, node.value, name)]
            return not names, names
        return True, []


def passed_on(function: ast.FunctionDef) -> list[str]:
    """Parameters that a function hands over and does not read.

    To hand over is to give to a call, to pack (tuple, list, dict, f-string) or to replace by a default (``x or y``,
    ``y if x is None else f(x)``), also under another local name. To read is everything else: an attribute, an item, a
    loop, arithmetic, a comparison, ``isinstance``, ``len``, the condition of an ``if``.
    """
    parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    names = [n for s in function.body for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    handed = []
    for parameter in parameters(function):
        aliases, seen, read = [parameter], set(), False
        for alias in aliases:  # grows
            for name in (n for n in names if n.id == alias and n not in seen):
                seen.add(name)
                reads, others = fate(name, parents)
                read = read or reads
                aliases += [a for a in others if a not in aliases]
        handed += [parameter] if seen and not read else []
    return handed


@pytest.mark.parametrize("path", MODULES.values(), ids=name_of)
def test_a_public_function_has_few_parameters_and_reads_most(path: Path) -> None:
    functions = [(name, n) for name, n in public(tree(path).body) if isinstance(n, ast.FunctionDef)]
    assert [name for name, n in functions if len(parameters(n)) > 8] == []
    assert [(name, passed_on(n)) for name, n in functions if len(passed_on(n)) > 5] == []


def test_no_public_function_hides_parameters_in_open_keywords() -> None:
    functions = [(f"{m}.{name}", n) for m, path in MODULES.items() for name, n in public(tree(path).body)]
    found = {name for name, n in functions if isinstance(n, ast.FunctionDef) and n.args.kwarg}
    assert found == set(OPEN_KEYWORDS)


@pytest.mark.parametrize(
    "body",
    [
        "g(a)",
        "g(k=a)",
        "g((1, [*a]), {'d': a})",
        "g(a or 1)",
        "g(f'{a}')",
        "g(1 if a is None else h(a))",
        "g(a if a else 1)",
        "b = a or 1; g(b)",
        "b, c = (1 if a is None else a), 2; g(b, c)",
    ],
)
def test_handing_over_is_not_reading(body: str) -> None:
    (function,) = ast.parse(f"def f(a): {body}").body
    assert isinstance(function, ast.FunctionDef) and passed_on(function) == ["a"]


@pytest.mark.parametrize(
    "body",
    [
        "return a + 1",
        "g(a.b)",
        "g(a[0])",
        "g(len(a))",
        "g([a] if isinstance(a, str) else a)",
        "g(x for x in a)",
        "b = a or 1; g(b.c)",
        "g(a == 1)",
        "h(a) if a > 1 else g(a)",
        "if a: g()",
        "if a is None: raise KeyError",
        "return (a is None) == 1",
    ],
)
def test_using_a_value_is_reading(body: str) -> None:
    (function,) = ast.parse("def f(a):\n  " + body.replace("; ", "\n  ")).body
    assert isinstance(function, ast.FunctionDef) and passed_on(function) == []


def test_the_public_names_are_few_and_are_those_of_their_modules() -> None:
    names = [name for name in dir(featmap) if not name.startswith("_")]
    assert len(names) <= PUBLIC_NAMES
    for name in names:
        value = getattr(featmap, name)
        assert callable(value) and value.__module__.startswith("featmap.") and value.__name__ == name


@pytest.mark.parametrize("path", MODULES.values(), ids=name_of)
def test_what_is_public_is_documented(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module)
    assert [name for name, node in public(module.body) if not ast.get_docstring(node)] == []  # type: ignore[arg-type]


LIGHT = """
import json, sys
seen = {}
import featmap
seen["featmap"] = "torch" in sys.modules
assert "similarity" in dir(featmap)
from featmap.cli import app as cli
try:
    cli.main(["--help"])
except SystemExit as end:
    seen["status"] = end.code
try:
    cli.main(["recipes"])
except SystemExit as end:
    seen["status"] += end.code
seen["help, recipes"] = sorted({"torch", "torchvision", "pandas", "matplotlib", "zarr", "bokeh"} & set(sys.modules))
import featmap.stats.measures, featmap.stats.clustering, featmap.stats.cross_layer, featmap.stats.agreement
import featmap.stats.image_quality, featmap.stats.transfer
import featmap.plotting.heatmaps, featmap.plotting.sheets, featmap.plotting.scatter
import featmap.validation.verdict, analyses.formulas.spectra, analyses.formulas.likeness
import analyses.formulas.divergence, analyses.formulas.extents
seen["measures, graph, plots"] = "torch" in sys.modules
print("\\n" + json.dumps(seen))
"""


LAYERS = """
import json, sys
from featmap.cli import app as cli
try:
    cli.main(["layers", "--match", "inception4a"])
except SystemExit as end:
    assert end.code == 0
heavy = {"pandas", "matplotlib", "zarr", "scipy", "networkx", "xarray", "torch._dynamo.convert_frame"}
seen = [sorted(heavy & set(sys.modules))]
import featmap.cli.console, featmap.runs.lifecycle, featmap.runs.maximise, featmap.runs.worker
seen.append(sorted((heavy - {"zarr", "scipy"} | {"scipy.stats"}) & set(sys.modules)))
print("\\n" + json.dumps(seen))
"""


def seen_by(program: str) -> tuple[str, Any]:
    """What a program in a process of its own prints, and the JSON in its last line."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SOURCE.parent, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def test_help_recipes_and_measures_do_without_torch() -> None:
    printed, seen = seen_by(LIGHT)
    assert "Usage: featmap" in printed and "article-normalised" in printed
    assert seen == {"featmap": False, "status": 0, "help, recipes": [], "measures, graph, plots": False}


def test_layers_are_listed_without_what_reads_runs_and_descents_begin_without_what_draws_them() -> None:
    printed, seen = seen_by(LAYERS)
    assert "inception4a" in printed and seen == [[], []]


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda p: p.stem)
def test_a_test_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
