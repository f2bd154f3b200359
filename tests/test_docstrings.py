"""Every public function and class has a docstring in numpy form, complete in parameters and results."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest
from numpydoc.validate import validate

from featmap.cli.app import app

SOURCE = Path(__file__).resolve().parent.parent / "featmap"
FILES = [p for p in sorted(SOURCE.rglob("*.py")) if p.stem not in ("__init__", "__main__")]
CHECKS = {
    *("GL03", "GL06", "GL07", "GL08", "GL10"),  # form: blank lines, known sections in their order
    *("SS01", "SS02", "SS03", "SS04", "SS05", "SS06"),  # a one-line summary, an imperative, ended by a stop
    *("PR01", "PR02", "PR03", "PR05", "PR07"),  # every parameter once, in order, with a description
    *("RT01", "RT03", "YD01"),  # what comes back
}
SUMMARY = 80
RAY_PARAMETER = "_ray_trace_ctx"
COMMANDS = {inspect.unwrap(c.callback) for c in (*app.registered_commands, app.registered_callback) if c and c.callback}
"""Functions that are commands: their docstrings are printed by ``--help``, which describes each option itself."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)


def public_names(path: Path) -> list[str]:
    """Dotted names of a module's public functions, classes and methods; properties and protocols' members apart."""
    found: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if any(ast.unparse(d) == "overload" for d in getattr(node, "decorator_list", [])):
                continue
            found.append(node.name)
            if isinstance(node, ast.ClassDef):
                inner = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
                found += [f"{node.name}.{n.name}" for n in inner]
    return list(dict.fromkeys(found))


def faults(module: str, name: str) -> list[str]:
    """What numpydoc finds wrong with one docstring, of the checks that we hold."""
    result = validate(f"{module}.{name}")
    # Python gives protocol classes a constructor of *args and **kwargs, though nobody calls it
    checks = CHECKS - {"PR01"} if getattr(getattr(import_module(module), name, None), "_is_protocol", False) else CHECKS
    errors = [f"{name} {code}: {text}" for code, text in result["errors"] if code in checks]
    # a class that ray has wrapped in this process has a parameter more in its methods' signatures
    errors = [error for error in errors if RAY_PARAMETER not in error]
    summary = (result["docstring"].strip().splitlines() or [""])[0]
    if len(summary) > SUMMARY:
        errors.append(f"{name}: summary of {len(summary)} characters, {SUMMARY} at most")
    return errors


@pytest.mark.parametrize("path", FILES, ids=lambda p: module_of(p).removeprefix("featmap."))
def test_public_docstrings_are_complete_numpy_form(path: Path) -> None:
    module = module_of(path)
    loaded = import_module(module)
    names = [name for name in public_names(path) if getattr(loaded, name, None) not in COMMANDS]
    assert [fault for name in names for fault in faults(module, name)] == []


def test_every_command_has_a_short_help_text() -> None:
    assert len(COMMANDS) >= 11
    for command in COMMANDS:
        summary = (inspect.getdoc(command) or "").splitlines()[0]
        assert summary.endswith(".") and len(summary) <= SUMMARY
