"""What a stored result rests on: the code of its study, recipes, the formula of S, and the network's weights.

A digest of a module is that of its syntax tree without comments and docstrings, so that only changes of the code
count. The modules of a study are its own and all those of `analyses` that they import. Of `featmap` itself, the recipes
that these modules name and the number of the formula of S count: everything else there keeps stored numbers by its own
rules.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from featmap.optimize import recipe as recipes
from featmap.optimize.recipe import RECIPES, Recipe
from featmap.stats.measures import FORMULA

ROOT = Path(__file__).resolve().parents[2]
HERE = "analyses"
DIGITS = 12
PLUMBING = {f"{HERE}.support{name}" for name in ("", ".commands", ".study_command", ".provenance", ".records")}
"""Modules that read options, and write and compare records: no number depends on them."""
UNRECORDED = "made before this was recorded"


def path_of(module: str, root: Path = ROOT) -> Path | None:
    """Find the file of a module of this folder.

    Parameters
    ----------
    module : str
        Name such as ``analyses.octaves``.
    root : Path, default ROOT
        Folder of the checkout.

    Returns
    -------
    Path or None
        The file; None where there is none of that name.
    """
    base = root.joinpath(*module.split("."))
    found = [p for p in (base.with_suffix(".py"), base / "__main__.py", base / "__init__.py") if p.is_file()]
    return found[0] if found else None


def parse(path: Path) -> ast.Module:
    """Parse a module, and leave out its docstrings.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    ast.Module
        The syntax tree, which has no comments either.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            # strings on lines of their own: docstrings, and the descriptions of constants
            node.body = [n for n in node.body if not _is_text(n)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    """Check whether a statement is a string on its own."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code_digest(path: Path) -> str:
    """Compute the digest of a module's code.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
        First 12 hexadecimal digits of a SHA-256; the same whatever comments, docstrings and line breaks are.
    """
    return hashlib.sha256(ast.unparse(parse(path)).encode()).hexdigest()[:DIGITS]


def imported(tree: ast.Module, root: Path = ROOT) -> list[str]:
    """List the modules of this folder that a module imports.

    Parameters
    ----------
    tree : ast.Module
        Its syntax tree.
    root : Path, default ROOT
        Folder of the checkout.

    Returns
    -------
    list of str
        Names such as ``analyses.support.study``.
    """
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
    chosen = [n for n in dict.fromkeys(names) if n.startswith(f"{HERE}.")]
    return [n for n in chosen if path_of(n, root) is not None]


def modules_of(*names: str, root: Path = ROOT) -> dict[str, Path]:
    """Find modules and all those of this folder that they import, directly or not.

    Parameters
    ----------
    *names : str
        Modules to begin with.
    root : Path, default ROOT
        Folder of the checkout.

    Returns
    -------
    dict of str to Path
        Files by the names of the modules, sorted.
    """
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        path = path_of(name, root)
        if name not in found and name not in PLUMBING and path is not None:
            found[name] = path
            waiting += imported(parse(path), root)
    return dict(sorted(found.items()))


def named_recipes(paths: Iterable[Path]) -> dict[str, str]:
    """Compute the digests of the recipes that modules name.

    Parameters
    ----------
    paths : iterable of Path
        Files of the modules.

    Returns
    -------
    dict of str to str
        Digests by the names of the recipes, of those whose name, or whose constant, occurs in a module.
    """
    constants = {k: v for k, v in vars(recipes).items() if isinstance(v, Recipe)}
    found: dict[str, str] = {}
    for path in paths:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in RECIPES:
                found[node.value] = RECIPES[node.value].digest
            elif isinstance(node, ast.alias) and node.name in constants:
                found[constants[node.name].name] = constants[node.name].digest
    return dict(sorted(found.items()))


@cache
def identities(study: str) -> dict[str, Any]:
    """Describe what results of a study rest on today, beside the weights.

    Parameters
    ----------
    study : str
        Name of the study, or of another module of this folder.

    Returns
    -------
    dict of str to Any
        `code` (digests by module), `recipes` (digests by name) and `formula` (that of S).
    """
    modules = modules_of(f"{HERE}.{study}")
    code = {name.removeprefix(f"{HERE}."): code_digest(path) for name, path in modules.items()}
    return {"code": code, "recipes": named_recipes(modules.values()), "formula": FORMULA}


def changes(recorded: Mapping[str, Any], today: Mapping[str, Any]) -> list[str]:
    """Name what changed since a result was stored.

    Parameters
    ----------
    recorded : mapping
        What was recorded with it, see `identities`.
    today : mapping
        The same today.

    Returns
    -------
    list of str
        Such as "analyses.octaves changed"; empty where nothing did.
    """
    found = []
    for kind, words in (("code", f"{HERE}."), ("recipes", "recipe ")):
        then, now = recorded[kind], today[kind]
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                fate = "is new" if name not in then else "is gone" if name not in now else "changed"
                found.append(f"{words}{name} {fate}")
    if recorded["formula"] != today["formula"]:
        found.append("the formula of S changed")
    return found


def weights_of(card: Path = ROOT / "data" / "card.json") -> str:
    """Read the SHA-256 of the bundled weights.

    Parameters
    ----------
    card : Path
        The card beside the weights.

    Returns
    -------
    str
        The SHA-256.
    """
    return str(json.loads(card.read_text(encoding="utf-8"))["sha256"])


def outdated(record: Mapping[str, Any], weights: str | None = None) -> list[str]:
    """Name what changed since a study's result was stored.

    Parameters
    ----------
    record : mapping
        The stored record.
    weights : str, default None
        SHA-256 of the network's weights; None: the network is not at hand, and its weights are not compared.

    Returns
    -------
    list of str
        As for `changes`, and whether the weights changed; `UNRECORDED` where nothing was recorded; empty where
        nothing changed.
    """
    recorded = record.get("rests_on")
    found = [UNRECORDED] if recorded is None else changes(recorded, identities(str(record["study"])))
    if weights is not None and record["weights_sha256"] != weights:
        found.insert(0, "the weights changed")
    return found
