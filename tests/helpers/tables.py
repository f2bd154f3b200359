"""Checks of the tables of run folders, which every reader of Parquet and CSV must understand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

PLAIN = {"float64", "float32", "int64", "int32", "bool", "object", "str", "string"}


def check_plain_tables(folder: Path) -> list[str]:
    """Check the types of all tables in a folder, and that each CSV holds what the Parquet beside it does."""
    paths = sorted(folder.rglob("*.parquet"))
    for path in paths:
        frame = pd.read_parquet(path)
        assert {str(kind) for kind in frame.dtypes} <= PLAIN, (path, frame.dtypes)
        numbers = frame.select_dtypes("number")
        values = numbers.to_numpy()
        assert values.dtype != object, (path, numbers.dtypes)
        assert (np.isfinite(values) | np.isnan(values)).all(), path
        if path.with_suffix(".csv").is_file():
            check_csv(frame, path.with_suffix(".csv"))
    return [path.relative_to(folder).as_posix() for path in paths]


def check_csv(frame: pd.DataFrame, path: Path) -> None:
    """Check the cells of a CSV: flags are words, whole numbers have no point, what is undefined is empty."""
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name, values in frame.items():
        text = cells[name]
        if str(name) == "identity" or str(name).endswith("reliable"):
            words = {1.0: "True", 0.0: "False"}
            assert text.to_list() == [words.get(v, "") for v in values], (path, name)
        elif values.dtype.kind in "if":
            assert [t == "" for t in text] == values.isna().to_list(), (path, name)
            defined = values.notna().to_numpy()
            np.testing.assert_allclose(text[defined].astype(float), values[defined], rtol=1e-8)
            assert not text.str.fullmatch(r"-?[0-9]+[.]0*").any(), (path, name)
