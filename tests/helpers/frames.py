"""Measures as masked arrays, for comparisons in which undefined values take no part."""

from __future__ import annotations

import numpy as np
import pandas as pd

from featmap.stats.frames import to_floats


def to_masked(frame: pd.DataFrame) -> np.ma.MaskedArray:
    """Return a measure's values with everything undefined masked; 0 lies under the mask."""
    values = to_floats(frame, "the frame")
    return np.ma.masked_array(np.nan_to_num(values), mask=np.isnan(values))
