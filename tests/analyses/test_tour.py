"""The notebooks of the tour run from top to bottom, and their committed outputs are those of their cells."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from analyses.tour.__main__ import NOTEBOOKS, choose, execute
from featmap.errors import FeatmapError


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: NotebookNode) -> list[list[str]]:
    """What each cell prints and shows: streams by name, data by media type."""
    return [
        sorted({o.get("name") or "+".join(sorted(o["data"])) for o in cell["outputs"]}) for cell in code_cells(notebook)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tour")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_has_the_outputs_that_are_stored(path: Path, folder: Path) -> None:
    stored, made = nbformat.read(path, as_version=4), execute(path, folder)
    assert kinds(made) == kinds(stored)
    assert not [o for cell in code_cells(made) for o in cell["outputs"] if o.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_asks_a_question_and_answers_it_with_a_picture(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    first, last = notebook.cells[0], code_cells(notebook)[-1]
    assert first.cell_type == "markdown" and first.source.splitlines()[0].endswith("?")
    assert "## The answer" in "\n".join(c.source for c in notebook.cells)
    assert any("image/png" in o.get("data", {}) for o in last["outputs"])
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]


def test_there_are_five_and_they_are_found_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    assert len(NOTEBOOKS) == 5
    assert choose(["2_", "4_"]) == [NOTEBOOKS[1], NOTEBOOKS[3]] and choose([]) == NOTEBOOKS
    with pytest.raises(FeatmapError, match="there is none; allowed: 1_a_first_map, "):
        choose(["6"])


def test_a_failing_cell_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    cell = nbformat.v4.new_code_cell("1 / 0", id="one")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    with pytest.raises(FeatmapError, match=r"broken.ipynb fails: .*ZeroDivisionError"):
        execute(path, tmp_path)
