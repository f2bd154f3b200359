"""Run the notebooks of the tour from top to bottom and store their outputs.

    python -m analyses.tour                   # all of them
    python -m analyses.tour 2_pairs --keep    # those whose names begin so; only try, and store nothing

Needed are nbclient and ipykernel: pip install 'featmap[test]'. All notebooks run in one folder, `--runs`, so that a map
that several of them use is made once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyses.support.commands import run
from featmap.cli.console import out
from featmap.errors import FeatmapError
from featmap.files import write_atomically

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
LIMIT = 600
"""Seconds after which a cell is given up: a notebook takes a minute or two."""
INLINE = "module://matplotlib_inline.backend_inline"


def execute(path: Path, folder: Path) -> NotebookNode:
    """Run a notebook.

    Parameters
    ----------
    path : Path
        The notebook; it is not changed.
    folder : Path
        Folder in which it runs and stores its runs.

    Returns
    -------
    NotebookNode
        The notebook with its outputs, without times of execution.

    Raises
    ------
    FeatmapError
        If a cell fails; the message names the notebook and the error.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    folder.mkdir(parents=True, exist_ok=True)
    # The kernel imports featmap from the checkout, whatever its folder is, and shows figures in the notebook, whatever
    # the environment says.
    paths = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=LIMIT, record_timing=False, resources=where, kernel_name="python3")
    try:
        client.execute(env=os.environ | {"PYTHONPATH": paths, "MPLBACKEND": INLINE})
    except CellExecutionError as error:
        raise FeatmapError(f"{path.name} fails: {error.ename}: {error.evalue}") from None
    return notebook


def choose(names: Sequence[str]) -> list[Path]:
    """Find the notebooks whose names begin with one of those given; all of them for none."""
    chosen = [p for p in NOTEBOOKS if not names or p.name.startswith(tuple(names))]
    if not chosen:
        allowed = ", ".join(p.stem for p in NOTEBOOKS)
        raise FeatmapError(f"notebook {', '.join(names)}: there is none; allowed: {allowed}")
    return chosen


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Beginnings of the notebooks' names; default: all.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder in which they run.")] = Path("runs/tour"),
    keep: Annotated[bool, typer.Option("--keep", help="Store nothing in the notebooks.")] = False,
) -> None:
    """Run the notebooks of the tour and store their outputs."""
    import nbformat

    for path in choose(names or []):
        made = execute(path, runs.resolve())
        if not keep:
            write_atomically(path, lambda p, made=made: p.write_text(nbformat.writes(made) + "\n", encoding="utf-8"))
        out().print(f"{path.name}: done")


if __name__ == "__main__":
    run(main)
