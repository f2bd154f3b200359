"""Write tables and figures into a run folder."""

from __future__ import annotations

from typing import Any

import pandas as pd

from featmap.files import translate_os_errors
from featmap.plotting import style
from featmap.runs.store import Run
from featmap.stats.frames import spell_flags


def write_frame(run: Run, name: str, frame: pd.DataFrame, rows: str = "image") -> None:
    """Write a table as Parquet and CSV.

    Parameters
    ----------
    run : Run
        Run folder; its manifest records the checksums.
    name : str
        Path in the folder without its ending.
    frame : pandas.DataFrame
        The table, float64 where a value may be undefined; NaN is null in Parquet and empty in CSV.
    rows : str, default "image"
        Name of the index, which labels the rows in both files.
    """
    frame = frame.rename_axis(index=rows)
    run.write(f"{name}.parquet", frame.to_parquet)
    run.write(f"{name}.csv", lambda p: spell_flags(frame).to_csv(p, float_format="%.9g", lineterminator="\n"))


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
