"""Keyed random generators: one for each purpose, the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: object) -> np.random.Generator:
    """Make the random generator that belongs to a key.

    NumPy's generator is used rather than torch's: its normal deviates do not depend on the processor's vector width.

    Parameters
    ----------
    *key : object
        Purpose, seed, step and the like; their texts are hashed.

    Returns
    -------
    np.random.Generator
        A new generator; the same key gives the same numbers on every machine.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
