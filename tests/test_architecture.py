from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "featmap"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = [p.stem for p in FILES if p.stem != "__init__"]

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "waiting": set(),
    "boundary": {"errors", "waiting"},
    "units": {"errors"},
    "fields": set(),
    "trace": {"fields"},
    "taps": {"errors"},
    "weights": {"errors"},
    "vision": {"errors"},
    "models": {"errors", "units", "taps", "trace", "transforms", "weights", "vision"},
    "recipes": {"errors"},
    "transforms": set(),
    "octaves": {"errors", "models", "recipes"},
    "images": {"recipes", "transforms"},
    "objectives": {"errors", "units"},
    "regroup": set(),
    "prepare": {"regroup"},
    "descent": {"errors", "units", "taps", "recipes", "transforms", "images", "objectives"},
    "batches": {"models", "taps", "objectives", "prepare", "recipes", "descent"},
    "probing": {"errors", "units", "models", "taps", "objectives"},
    "photographs": {"errors"},
    "devices": {"errors"},
    "writing": {"errors"},
    "manifests": {"errors", "writing"},
    "metadata": {"writing"},
    "store": {"errors", "writing", "manifests", "metadata"},
    "integrity": {"errors", "writing", "manifests", "metadata", "store"},
    "verifying": {"console", "integrity"},
    "engine": {"errors", "store"},
    "cluster": {"errors", "engine", "store"},
    "runs": {
        *("memory", "octaves", "devices"),
        *("errors", "models", "recipes", "transforms", "images", "objectives"),
        *("batches", "descent", "probing", "engine", "cluster", "store"),
    },
    "interaction": set(),
    "joints": {
        "octaves",
        *("errors", "units", "models", "recipes", "transforms", "objectives"),
        *("interaction", "interplay", "store", "runs"),
    },
    "jointwork": {
        *("units", "images", "transforms", "objectives", "batches", "descent", "probing"),
        *("interaction", "engine", "store", "runs", "joints"),
    },
    "folders": {"devices", "errors", "models", "recipes", "engine", "writing", "store", "runs"},
    "interplay": {"interaction"},
    "memory": {"errors", "models", "recipes"},
    "estimates": {
        "memory",
        "devices",
        *("models", "recipes", "objectives", "descent", "batches", "probing"),
        *("runs", "folders", "joints", "gram"),
    },
    "measures": {"errors"},
    "graph": {"errors", "measures"},
    "gram": {"measures"},
    "blocks": {"errors", "models", "trace"},
    "overviews": {
        *("runs", "folders", "engine", "store", "measures", "crossings", "gram", "marks"),
        *("tables", "crosstables", "maps"),
    },
    "drawing": set(),
    "crossings": {"errors", "measures"},
    "divergence": set(),
    "reliability": set(),
    "partitions": {"graph", "reliability"},
    "palettes": {"reliability"},
    "coherence": {"interaction"},
    "spectra": set(),
    "likeness": {"measures"},
    "runners": set(),
    "extents": {"fields"},
    "linear": {"errors", "models"},
    "marks": set(),
    "agreement": {"measures", "reliability"},
    "trials": {"agreement", "graph", "marks", "measures", "reliability"},
    "permutations": {"agreement", "graph", "measures", "reliability", "trials"},
    "appraisal": {"marks", "trials"},
    "planted": {"errors", "measures", "recipes", "transforms"},
    "untrained": {"errors", "models", "taps", "transforms", "weights"},
    "wiring": {"models", "taps"},
    "trialplots": {"errors", "drawing"},
    "evidence": {
        *("agreement", "findings", "graph", "measures", "trials", "wiring"),
        *("engine", "models", "store", "runs", "maps", "api"),
    },
    "certificates": {
        *("agreement", "appraisal", "marks", "permutations", "reliability", "trials", "sheets", "trialplots"),
        *("engine", "store", "runs", "tables", "api"),
    },
    "validation": {
        "devices",
        "integrity",
        "manifests",
        "permutations",
        *("errors", "units", "models", "recipes", "objectives", "photographs", "untrained"),
        *("engine", "store", "runs", "folders", "estimates", "findings", "tables", "maps", "mapping", "api"),
        *("appraisal", "atlases", "certificates", "evidence", "trials"),
    },
    "validating": {"errors", "options", "console", "validation"},
    "plots": {"errors", "drawing"},
    "crossplots": {"errors", "drawing"},
    "sheets": {"errors", "drawing"},
    "panels": {"errors", "drawing"},
    "screenplots": {"drawing"},
    "findings": {"graph"},
    "tables": {
        *("errors", "measures", "graph", "marks", "findings", "drawing", "plots", "sheets", "trace"),
        *("engine", "writing", "store", "runs"),
    },
    "crosstables": {
        *("measures", "graph", "marks", "crossings", "crossplots", "tables"),
        *("engine", "store"),
    },
    "maps": {
        *("errors", "runs", "engine", "store", "measures", "graph", "crossings"),
        *("findings", "tables", "crosstables"),
    },
    "mapping": {
        "devices",
        *("errors", "units", "models", "recipes", "objectives", "photographs"),
        *("engine", "store", "runs", "folders", "estimates", "marks", "tables", "crosstables", "maps"),
        *("blocks", "overviews"),
    },
    "api": {
        "devices",
        "integrity",
        "manifests",
        *("errors", "units", "models", "recipes", "objectives", "photographs", "probing"),
        *("engine", "store", "runs", "folders", "mapping"),
    },
    "verdicts": {"recipes", "interaction", "interplay", "crossplots", "panels", "sheets", "tables", "store"},
    "pairings": {
        "devices",
        *("errors", "units", "models", "recipes", "engine", "store", "runs", "folders", "mapping"),
        *("joints", "jointwork", "interplay", "verdicts"),
    },
    "lookup": {"errors", "recipes"},
    "neighbours": {"errors", "marks", "lookup", "store", "tables"},
    "console": set(),
    "predictors": {"interaction"},
    "judging": {"predictors"},
    "screening": {
        "devices",
        *("errors", "units", "models", "recipes", "transforms", "objectives", "batches", "probing"),
        *(
            "engine",
            "store",
            "runs",
            "folders",
            "estimates",
            "interaction",
            "joints",
            "jointwork",
            "tables",
            "verdicts",
        ),
        *("pairings", "predictors", "judging", "screenplots"),
    },
    "interactive": {"devices", "errors", "options", "console", "estimates", "pairings", "screening", "runs"},
    "pictures": set(),
    "layouts": set(),
    "reproduction": {"errors", "recipes"},
    "reports": {"errors", "units", "store", "tables", "maps", "verdicts", "pictures", "reproduction"},
    "layerpages": {
        *("errors", "units", "engine", "store", "runs", "measures", "tables", "crosstables", "maps"),
        *("drawing", "marks", "plots", "layouts", "pictures", "reproduction"),
    },
    "pages": {"layerpages", "reports"},
    "atlases": {
        "integrity",
        *("errors", "models", "probing", "engine", "store", "tables", "crosstables", "maps", "api"),
        *("layerpages", "reports", "pages"),
    },
    "browsing": {"errors", "options", "console", "atlases"},
    "options": {"devices", "errors", "engine", "models", "recipes", "runs", "estimates", "mapping", "console"},
}
"""What each module may import of featmap, written so that nothing below sees anything above it. `cli` sees all."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> set[str]:
    """The featmap modules that a file imports when it runs; what only a type checker sees does not count."""
    module = tree(path)
    typing_only = {
        id(inner)
        for node in ast.walk(module)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(module):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("featmap.")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "featmap":
            rest = (node.module or "").partition(".")[2]
            found |= {rest.split(".")[0]} if rest else {a.name for a in node.names}
    return found & {p.stem for p in FILES}


def test_every_module_has_its_place() -> None:
    assert set(MODULES) - {"cli"} == set(ALLOWED)


def test_the_table_has_no_cycle() -> None:
    placed: set[str] = set()
    while len(placed) < len(ALLOWED):
        ready = {m for m, needs in ALLOWED.items() if needs <= placed} - placed
        assert ready, f"a cycle among {sorted(set(ALLOWED) - placed)}"
        placed |= ready


@pytest.mark.parametrize("path", [p for p in FILES if p.stem in ALLOWED], ids=lambda p: p.stem)
def test_imports_run_one_way(path: Path) -> None:
    assert imported(path) <= ALLOWED[path.stem]


def test_nothing_imports_the_command_line() -> None:
    assert [p.stem for p in FILES if "cli" in imported(p)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
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
from featmap import cli
try:
    cli.main(["--help"])
except SystemExit as end:
    seen["status"] = end.code
try:
    cli.main(["recipes"])
except SystemExit as end:
    seen["status"] += end.code
seen["help, recipes"] = sorted({"torch", "torchvision", "pandas", "matplotlib", "zarr", "bokeh"} & set(sys.modules))
import featmap.measures, featmap.graph, featmap.crossings, featmap.plots, featmap.sheets, featmap.crossplots
import featmap.appraisal, featmap.agreement, featmap.trialplots, featmap.spectra, featmap.likeness, featmap.divergence
import featmap.extents
seen["measures, graph, plots"] = "torch" in sys.modules
print("\\n" + json.dumps(seen))
"""


LAYERS = """
import json, sys
from featmap import cli
try:
    cli.main(["layers", "--match", "inception4a"])
except SystemExit as end:
    assert end.code == 0
heavy = {"pandas", "matplotlib", "zarr", "scipy", "networkx", "xarray", "torch._dynamo.convert_frame"}
print("\\n" + json.dumps(sorted(heavy & set(sys.modules))))
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


def test_layers_are_listed_without_what_reads_runs() -> None:
    printed, seen = seen_by(LAYERS)
    assert "inception4a" in printed and seen == []


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("*.py")), ids=lambda p: p.stem)
def test_a_test_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
