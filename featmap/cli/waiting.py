"""How torch's threads wait for each other. It has to be said before torch is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

SPINS = "10000"


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads spin for some microseconds and then sleep; a setting of the user's own comes first.

    By default they spin for milliseconds: where anything else runs, that makes a descent two to four times slower.
    Sleeping at once costs a call of the system at each of a step's several hundred meetings. Other OpenMP libraries
    than GNU's know no number, and sleep.
    """
    if "OMP_WAIT_POLICY" in environment or "GOMP_SPINCOUNT" in environment:
        return
    if sys.platform == "linux":
        environment["GOMP_SPINCOUNT"] = SPINS
    else:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
