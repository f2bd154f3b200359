"""The benchmark that compares the ways of measuring interaction over pairs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import featmap
from analyses.benchmarks import methods, records
from featmap.errors import FeatmapError
from featmap.interaction.conclusion import METHODS
from tests.helpers import tiny
from tests.helpers.pictures import save_colours
from tests.helpers.settings import options

pytestmark = pytest.mark.usefixtures("one_thread")


def planted(seed: int, pairs: int = 30) -> dict[str, object]:
    """A stored result in which both direct tests order pairs alike, and against the response nonlinearity."""
    values = np.linspace(0, 1, pairs)
    names = list(dict.fromkeys([name for both in METHODS for name in both])) + list(methods.OTHERS)
    rng = np.random.default_rng(seed)
    columns: dict[str, list[float | None]] = {name: rng.random(pairs).tolist() for name in names}
    columns |= {"direct": values.tolist(), "direct_hessian": (values**3).tolist()}
    columns["response_nonlinearity"] = (1 - values).tolist()
    columns["direct_agreement"] = [None, *[0.5] * (pairs - 1)]
    return {
        "source": f"net{seed}",
        "weights": "hash",
        "layers": ["a", "b"],
        "size": 8,
        "steps": 3,
        "seeds": 3,
        "photographs": 1000,
        "groups": [f"a:{k % 6} + b:{k // 6}" for k in range(pairs)],
        "kinds": ["additive", *["undecided"] * (pairs - 1)],
        "pairs": columns,
    }


def test_planted_orders_are_found() -> None:
    page = methods.format_page([planted(0)]).splitlines()
    (hessian,) = [line for line in page if "second derivative at photographs against mixed difference" in line]
    assert "+1.00 [+1.00, +1.00] (30)" in hessian
    (joint,) = [line for line in page if "mixed difference at photographs against response nonlinearity" in line]
    assert "-1.00 [-1.00, -1.00] (30)" in joint
    assert "| pairs that are additive | 1 |" in page and "| pairs that are undecided | 29 |" in page
    assert any("0.50 (0.50 to 0.50; 29 pairs)" in line for line in page)
    assert "- net0: a with b, 30 pairs of 11 features, 3 seeds, 8 pixels, 3 steps, 1,000 photographs" in page
    assert "- second derivatives and mixed differences at photographs rank pairs alike: shown on net0, of 1" in page
    (line,) = [text for text in page if text.startswith("- the direct test at photographs and the joint descent")]
    assert line.endswith("shown on none, of 1; the opposite on net0")


def test_two_pairs_of_layers_of_one_network_have_heads_of_their_own() -> None:
    page = methods.format_page([planted(0), planted(0) | {"layers": ["a", "c"]}])
    assert "| compared | net0, a with b | net0, a with c |" in page


def test_a_statistic_that_no_pair_defines_is_undefined() -> None:
    one = planted(1)
    one["pairs"] = {**one["pairs"], "direct": [None] * 30, "direct_agreement": [None] * 30}  # type: ignore[dict-item]
    page = methods.format_page([one])
    assert "against response nonlinearity | undefined (0 pairs) |" in page
    assert "correlation over features | undefined |" in page


def test_a_run_is_collected(tmp_path: Path, cheap_runs: None) -> None:
    colours = np.random.default_rng(0).integers(20, 236, (24, 3))
    featmap.interact(
        network=tiny.small(),
        layers=[("second", "0-2"), ("first", "0-1")],
        photographs=save_colours(tmp_path / "photographs", colours),
        **options("interact", out=tmp_path / "run", size=16, steps=3, seeds=2),
    )
    found = methods.collect(tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "pairs.csv")
    assert found["layers"] == ["second", "first"] and found["photographs"] == 24 and found["seeds"] == 2
    assert len(found["groups"]) == len(found["kinds"]) == 6
    np.testing.assert_allclose(np.array(found["pairs"]["direct"], dtype=float), table["direct"], rtol=1e-5)
    expected = spearmanr(table["direct"], table["response_nonlinearity"], nan_policy="omit").statistic
    assert f"against response nonlinearity | {expected:+.2f} (" in methods.format_page([found])


def test_other_folders_are_refused(tmp_path: Path, cheap_runs: None) -> None:
    featmap.interact(
        network=tiny.small(),
        layers=[("second", "0-1"), ("first", "0")],
        **options("interact", out=tmp_path / "run", size=16, steps=2, seeds=1),
    )
    with pytest.raises(FeatmapError, match="no finished run of featmap interact --layers A B --photographs FOLDER"):
        methods.collect(tmp_path / "run")


def test_a_run_of_an_earlier_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = {"command": "interact --layers", "photographs": {"count": 1}}
    monkeypatch.setattr(methods.Run, "read", lambda folder: SimpleNamespace(identity=identity))
    pd.DataFrame({"a": ["x:0"], "b": ["y:1"], "direct": [0.1]}).to_csv(tmp_path / "pairs.csv")
    with pytest.raises(FeatmapError, match="was measured before response_nonlinearity was; run its command again"):
        methods.collect(tmp_path)


def test_new_results_replace_those_of_the_same_network_and_layers() -> None:
    old, other = planted(1), planted(2)
    new = planted(1) | {"seeds": 5}
    assert records.merge_results([old, other], [new]) == [other, new]


def test_the_table_is_made_from_the_stored_values() -> None:
    stored = records.read_results(methods.STORE)
    assert methods.format_page(stored) in records.README.read_text(encoding="utf-8")
