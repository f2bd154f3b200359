"""Validations of tiny networks whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from featmap.mapping.run import similarity
from featmap.network.loading import load
from featmap.runs.engine import Execution
from featmap.runs.progress import Silent
from featmap.runs.store import open_arrays
from featmap.stats import measures
from featmap.stats.top_responses import photograph_halves
from featmap.validation import planted, verdict
from featmap.validation import run as validation
from featmap.validation.inputs import layers_on_path
from featmap.validation.planted import LINEAR
from featmap.validation.results import Validation
from tests.helpers import networks, twofold
from tests.helpers.settings import options

pytestmark = [
    pytest.mark.filterwarnings("ignore::featmap.stats.measures.FewStimuliWarning"),
    pytest.mark.usefixtures("cheap_runs", "one_thread"),
]
FEW: dict[str, Any] = {"recipe": LINEAR, "device": "cpu"}


@pytest.fixture(scope="module")
def two_networks(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> dict[str, Validation]:
    result = {}
    for name in ("trap", "honest"):
        network, folder = load(getattr(twofold, name)(), input_size=16), tmp_path_factory.mktemp("runs") / name
        similarity("features", network, **options(out=folder, **FEW))
        result[name] = validation.validate(folder, photographs=photographs, seeds=3, null_seeds=1, network=network)
    return result


def test_the_processing_path_detects_a_network_of_two_branches(two_networks: dict[str, Validation]) -> None:
    trap, honest = (two_networks[name].trained["features"] for name in ("trap", "honest"))
    score = trap.statistics["path:branches"]
    assert score.value is not None and score.high is not None and score.value < 0.2 and score.high < 0.5
    assert honest.value("path:branches") > 0.8  # type: ignore[operator]
    assert honest.value("path:features") > 0.8  # type: ignore[operator]
    conclusions = verdict.reach_verdict(trap)
    assert any(
        "assume at all that the images are processed as photographs are" in line and "lowest at branches: -0.0" in line
        for line in conclusions.may_not
    )
    assert any("typical preferred stimuli" in line for line in verdict.reach_verdict(honest).may)
    assert trap.p("photographs_pearson") > 0.05 > honest.p("photographs_pearson")  # type: ignore[operator]
    assert any("carry any of it over" in line for line in conclusions.may_not)


@pytest.mark.parametrize("layer", ["features", "block"])
def test_two_branches_within_a_block_are_detected(tmp_path: Path, photographs: Path, layer: str) -> None:
    network = load(twofold.hidden(), input_size=16)
    similarity(layer, network, **options(out=tmp_path / "run", **FEW))
    result = validation.validate(tmp_path / "run", photographs=photographs, seeds=2, null_seeds=0, network=network)
    score = result.trained[layer].statistics["path:block.branches"]
    assert score.value is not None and score.high is not None and score.value < 0.2 and score.high < 0.5
    assert any(
        "lowest at block.branches: -0.0" in line for line in verdict.reach_verdict(result.trained[layer]).may_not
    )
    assert result.trained[layer].value("path_passed_over") == 0


def test_statistics_follow_from_the_stored_arrays(two_networks: dict[str, Validation]) -> None:
    result = two_networks["honest"]
    evaluation, run = result.trained["features"], result.folder.parent
    sets = [open_arrays(f) for f in (run, result.folder / "seed-1", result.folder / "seed-2")]
    A = np.concatenate([d["A"].values for d in sets]).astype(float)
    S = [measures.profile_correlations(a) for a in A]
    upper = np.triu_indices(len(S[0]), 1)
    pairs = [stats.pearsonr(S[i][upper], S[j][upper]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert evaluation.value("repeatability") == pytest.approx(np.mean(pairs), abs=1e-9)
    (folder,) = result.folder.glob("photographs-*")
    natural = open_arrays(folder)["A"]
    P = natural.sel(response=evaluation.evidence.names).values.astype(float)
    by_hand = stats.pearsonr(S[0][upper], measures.profile_correlations(P)[upper]).statistic
    assert evaluation.value("photographs_pearson") == pytest.approx(by_hand, abs=1e-9)
    ranks = stats.spearmanr(S[0][upper], measures.profile_correlations(P)[upper]).statistic
    assert evaluation.value("photographs_spearman") == pytest.approx(ranks, abs=1e-9)
    one, two = photograph_halves(len(P))
    reached = {"photographs_agreement": 0.0, "photographs_ceiling": 0.0}
    for half, other in ((one, two), (two, one)):
        yardstick = measures.profile_correlations(P[half])[upper]
        best = measures.profile_correlations(np.array([P[other][P[other][:, j].argmax()] for j in range(P.shape[1])]))
        reached["photographs_agreement"] += stats.pearsonr(S[0][upper], yardstick).statistic / 2
        reached["photographs_ceiling"] += stats.pearsonr(best[upper], yardstick).statistic / 2
    for name, expected in reached.items():
        assert evaluation.value(name) == pytest.approx(expected, abs=1e-9)
    share = reached["photographs_agreement"] / reached["photographs_ceiling"]
    assert evaluation.value("photographs_share") == pytest.approx(share, abs=1e-9)
    page = (result.folder / "validation.md").read_text()
    assert "of the ceiling" in page and "| photographs share |" in page
    ratio = np.median(np.diag(A[0]) / P.max(0))
    assert evaluation.value("multiple") == pytest.approx(ratio, abs=1e-9)
    assert evaluation.value("incoming_weights") is None  # they have nothing in common: all cosines are 0


def test_a_planted_networks_map_agrees_with_its_weights_and_repeats(tmp_path: Path) -> None:
    network_with_blocks = planted.plant("blocks", noise=0.3)
    network = load(network_with_blocks.module, input_size=network_with_blocks.size)
    similarity("features", network, **options(out=tmp_path / "run", **FEW))
    result = validation.validate(tmp_path / "run", seeds=2, null_seeds=2, network=network)
    evaluation, null = result.trained["features"], result.random["features"]
    # the seeds' null images, and with them what roots are taken of, differ a little
    assert evaluation.value("repeatability") == pytest.approx(1, abs=3e-3)
    upper = np.triu_indices(32, 1)
    arrays = open_arrays(tmp_path / "run").isel(seed=0)
    own, no_image = np.diag(arrays["A"].values).astype(float), arrays["null"].values.astype(float)
    S = network_with_blocks.closed_form(no_image, own)
    closed = stats.pearsonr(S[upper], network_with_blocks.cosines[upper]).statistic
    assert evaluation.value("incoming_weights") == pytest.approx(closed, abs=1e-5)
    assert evaluation.value("clusters") == 4 and evaluation.value("ari_of_seeds") == 1
    assert evaluation.p("incoming_weights") == 0.001
    assert null.value("clusters") == 0
    assert result.permuted["features"]["clusters"].value == 0
    assert evaluation.statistics["modularity"].value > 1.2 * result.permuted["features"]["modularity"].value  # type: ignore[operator]
    assert evaluation.statistics["ari_of_louvain"].value == 1 and evaluation.statistics["ari_of_seeds"].low is None
    assert "one draw of them, 2 seed(s) of noise" in (tmp_path / "run" / "validation" / "validation.md").read_text()
    left = result.permuted["features"]["incoming_weights_spearman"]
    assert left.low < 0 < left.high and abs(left.value) < 0.2  # type: ignore[operator]
    left = result.permuted["features"]["incoming_weights"]
    assert left.low < 0 < left.high and abs(left.value) < 0.2  # type: ignore[operator]
    assert "photographs_pearson" not in evaluation.statistics
    assert any("none were given" in line for line in verdict.reach_verdict(evaluation).may_not)
    assert not list((tmp_path / "run" / "validation").glob("photographs*"))


class Notes(Silent):
    """A watcher that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_network_without_random_weights_has_no_such_null(tmp_path: Path, photographs: Path) -> None:
    network = load(twofold.bare(), input_size=16)
    similarity("features", network, **options(out=tmp_path / "run", **FEW))
    execution = Execution(out=tmp_path / "elsewhere", watcher=Notes())
    result = validation.validate(tmp_path / "run", seeds=2, network=network, execution=execution)
    assert result.random == {} and "is reparametrised" in result.reason
    assert "is reparametrised" in (tmp_path / "elsewhere" / "validation.md").read_text()
    assert not (tmp_path / "run" / "validation").exists()
    assert [n for n in execution.watcher.notes if n.startswith("no null model with random weights: ")]  # type: ignore[attr-defined]


def test_the_path_leads_through_outer_layers_and_some_inside_them() -> None:
    network = load(networks.small_inception(), input_size=16)
    names = list(network.trace(16).layers)
    inside = [n for n in names if n.startswith("mixed.")]
    assert len(inside) == 10
    assert layers_on_path(network, "mixed", 16, 10) == (["stem", "norm", "relu@1", *inside, "mixed"], 0)
    assert layers_on_path(network, "narrow", 16, 10) == (["stem", "norm", "relu@1", *inside, "mixed", "narrow"], 0)
    way = layers_on_path(network, "mixed.branch2.1", 16)[0]
    assert "mixed.branch2.0" in way and way[-1] == "mixed.branch2.1" and "mixed" not in way
    few, over = layers_on_path(network, "narrow", 16, 2)
    assert few == ["stem", inside[0], inside[-1], "mixed", "narrow"] and over == names.index("narrow") - 4
    reference = load("reference")
    way, over = layers_on_path(reference, "inception5b", 96)
    outer = [n for n in way if "." not in n]
    assert outer[-2:] == ["inception5a", "inception5b"] and len(outer) == 9 and len(way) == 17
    assert over == list(reference.trace(96).layers).index("inception5b") - 16 > 30
