"""Write tables and figures into a run folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from featmap.files import safe_file_name, translate_os_errors
from featmap.image_shape import colour_note, to_rgb
from featmap.plotting import pages, sheets, style
from featmap.plotting.sheets import Sheet
from featmap.runs.store import Run
from featmap.stats.frames import spell_flags

CSV_CELLS = 2**24
"""Most values of a table that is written as CSV too: S of 10,000 features would take ten minutes and 1.2 GB."""


def write_frame(run: Run, name: str, frame: pd.DataFrame, rows: str = "image") -> None:
    """Write a table as Parquet and, of up to `CSV_CELLS` values, as CSV.

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
    if frame.size > CSV_CELLS:
        return
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


def save_sheet(run: Run, name: str, sheet: Sheet) -> None:
    """Write a contact sheet into a run folder, as one PNG and as pages of A4.

    Parameters
    ----------
    run : Run
        Run folder; its manifest records the checksums.
    name : str
        Path in the folder without its ending.
    sheet : Sheet
        Images and texts; images are shown with the display stretch, and the sheet says so.
    """
    shown = replace(sheet, stretched=True)
    save_figure(run, sheets.contact_sheet(shown), name, ("png",))
    with translate_os_errors(f"run folder {str(run.folder)!r}"):
        path = pages.save_pages(pages.sheet_pages(shown), run.folder / f"{name}.pdf")
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


def save_facets(run: Run, prefix: str, pixels: np.ndarray, table: pd.DataFrame) -> None:
    """Write the pictures and the contact sheets of facets into a run folder.

    Parameters
    ----------
    run : Run
        Run folder; its manifest records the checksums.
    prefix : str
        Subfolder with a slash at the end; "" for the run folder itself.
    pixels : numpy.ndarray
        Images, N units x n facets x C x H x W in [0, 1].
    table : pandas.DataFrame
        Table of the facets in the same order, see `featmap.stats.facets.facet_table`.
    """
    rows, n = list(table.itertuples()), pixels.shape[1]
    for k, row in enumerate(rows):
        if row.facet:
            name = f"{prefix}facets/{k // n:05d}-{safe_file_name(str(row.image))}-{row.facet}.png"
            run.write(name, to_picture(pixels[k // n, k % n]).save)
    sheet = Sheet(
        images=pixels.reshape(-1, *pixels.shape[2:]),
        labels=[f"facet {row.facet}" if row.facet else str(row.image) for row in rows],
        captions=[_facet_caption(row) for row in rows],
        title=f"{n} facets of each of {len(pixels)} units, and the share of the ordinary response that each keeps"
        + colour_note(pixels.shape[2]),
        columns=n * max(1, 6 // n),
    )
    save_sheet(run, f"{prefix}facets", sheet)


def _facet_caption(row: Any) -> str:
    """Write the caption of a facet: its response, the share that it keeps, and whether it is clearly different."""
    if row.facet == 0:
        return format_number(row.activation)
    kept = "undefined" if pd.isna(row.kept) else f"{row.kept:.0%}"
    return kept + (" different" if not pd.isna(row.different) and row.different else "")


def to_picture(pixels: np.ndarray) -> Image.Image:
    """Convert an image to a picture: gray, red-green-blue, or false colours.

    Parameters
    ----------
    pixels : numpy.ndarray
        C x H x W; values are clipped to [0, 1].

    Returns
    -------
    PIL.Image.Image
        8 bits a channel.
    """
    shown = to_rgb(pixels) if len(pixels) > 1 else pixels
    values = (np.clip(shown, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(values if len(shown) > 1 else values[:, :, 0])
