"""Write tables and figures into a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from featmap.files import translate_os_errors
from featmap.plotting import pages, sheets, style
from featmap.runs.store import Run


def write_frame(run: Run, name: str, frame: pd.DataFrame, rows: str = "image") -> None:
    """Write a table as Parquet and CSV.

    Parameters
    ----------
    run : Run
        Run folder; its manifest records the checksums.
    name : str
        Path in the folder without its ending.
    frame : pandas.DataFrame
        The table; NaN is null in Parquet and empty in CSV.
    rows : str, default "image"
        Name of the index, which labels the rows in both files.
    """
    frame = frame.rename_axis(index=rows)
    run.write(f"{name}.parquet", frame.to_parquet)
    run.write(f"{name}.csv", lambda p: frame.to_csv(p, float_format="%.9g", lineterminator="\n"))


def save_figure(run: Run, figure: Any, name: str, formats: tuple[str, ...]) -> None:
    """Write a figure into a run folder.

    Parameters
    ----------
    run : Run
        Run folder; its manifest records the checksums.
    figure : matplotlib.figure.Figure
        The figure; it is closed.
    name : str
        Path in the folder without its ending.
    formats : tuple of str
        Endings, such as ``("png", "svg")``.
    """
    with translate_os_errors(f"run folder {str(run.folder)!r}"):
        paths = style.save(figure, run.folder / name, formats)
    for path in paths:
        run.register_file(path)


def save_sheet(run: Run, name: str, images: np.ndarray, labels: Sequence[str], **settings: Any) -> None:
    """Write a contact sheet into a run folder, as one PNG and as pages of A4.

    Images are shown with the display stretch, and the sheet says so.

    Parameters
    ----------
    run : Run
        Run folder; its manifest records the checksums.
    name : str
        Path in the folder without its ending.
    images : numpy.ndarray
        Images, N x C x H x W in [0, 1]; they are not changed.
    labels : sequence of str
        Label of every image.
    **settings : Any
        Captions, groups and title, see `featmap.plotting.sheets.contact_sheet`.
    """
    sheet = sheets.contact_sheet(images, labels, columns=None, stretched=True, **settings)
    save_figure(run, sheet, name, ("png",))
    with translate_os_errors(f"run folder {str(run.folder)!r}"):
        path = pages.save_pages(
            pages.sheet_pages(images, labels, stretched=True, **settings), run.folder / f"{name}.pdf"
        )
    run.register_file(path)


def format_number(value: Any) -> str:
    """Format a number to three significant digits.

    Parameters
    ----------
    value : float
        May be NaN.

    Returns
    -------
    str
        "undefined" for NaN.
    """
    return "undefined" if pd.isna(value) else f"{value:.3g}"
