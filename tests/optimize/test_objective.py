from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featmap.errors import UnitError
from featmap.network.directions import Directions
from featmap.network.unit import Unit
from featmap.optimize.objective import METRIC_LOSSES, BatchLoss, Objective, channel
from featmap.optimize.recipe import METRICS

pytestmark = pytest.mark.usefixtures("one_thread")

repeatable = settings(derandomize=True, deadline=None, max_examples=40)
SHAPES = {"a": (5, 4, 3), "b": (3, 2, 6), "logits": (4, 1, 1)}
EVERY_KIND = ["a:1", "a:2:3", "a:4:0:2", "a:0:1:1+3:2:0+3:3:2", "a:1:..5", "a:all", "b:2", "b:0:1", "logits:3"]


def outputs(rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: 3 * torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for k, shape in SHAPES.items()}


# ---------------------------------------------------------------- arithmetic


def test_objectives_add_and_scale() -> None:
    both = 0.2 * channel("mixed4a", 20) + channel("mixed4a", 21) * 0.8
    assert both.terms == ((0.2, Unit("mixed4a", 20)), (0.8, Unit("mixed4a", 21)))
    assert (2 * both).terms == ((0.4, Unit("mixed4a", 20)), (1.6, Unit("mixed4a", 21)))
    assert (-both).terms == ((-0.2, Unit("mixed4a", 20)), (-0.8, Unit("mixed4a", 21)))
    assert (both - both).terms == both.terms + (-both).terms
    assert both == Objective.parse("0.2 * mixed4a:20 + 0.8 * mixed4a:21")
    assert hash(both) == hash(Objective.parse("0.2*mixed4a:20 + 0.8*mixed4a:21"))


def test_layers_are_named_once() -> None:
    assert Objective.parse("b:1 + a:2 + b:3").layers == ["b", "a"]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("a:1", ((1.0, Unit("a", 1)),)),
        (Unit("a", 1, 2), ((1.0, Unit("a", 1, 2)),)),
        (channel("a", 1), ((1.0, Unit("a", 1)),)),
        ("  a:1   +  2 * b:2:1 ", ((1.0, Unit("a", 1)), (2.0, Unit("b", 2, 1)))),
        ("-1e-3 * a", ((-0.001, Unit("a")),)),
        ("a:0:1:2+1:0:0 + a:1", ((1.0, Unit.parse("a:0:1:2+1:0:0")), (1.0, Unit("a", 1)))),
    ],
)
def test_what_an_objective_can_be_given_as(given_: object, expected: tuple) -> None:
    assert Objective.parse(given_).terms == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "a:1 + ", "x * a:1", "* a:1", "nan * a:1", "inf * a:1", "1e999 * a:1", "2 * 3 * a:1", "a:1 - b:2"],
)
def test_malformed_sums_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UnitError) as caught:
        Objective.parse(text)
    assert len(str(caught.value).splitlines()) == 1


weights = st.sampled_from([1.0, 0.5, -2.0, 0.001, 12.0])
some_units = st.sampled_from(EVERY_KIND).map(Unit.parse)
sums = st.lists(st.tuples(weights, some_units), min_size=1, max_size=4).map(lambda t: Objective(tuple(t)))


@given(sums)
@repeatable
def test_what_is_printed_is_read_again(target: Objective) -> None:
    assert Objective.parse(str(target)) == target


def test_other_weights_have_other_names() -> None:
    one, other = 0.12345678 * channel("a", 1), 0.12345679 * channel("a", 1)
    assert one != other
    assert str(one) != str(other)
    assert Objective.parse(str(one)) == one


# ---------------------------------------------------------------- metrics


def focus_of(text: str, output: Tensor) -> Tensor:
    """The article's slices: [f, :, :], [f, m, :], [f, m, n]; a prefix and a set as vectors; a layer as it is."""
    unit = Unit.parse(text)
    if unit.kind == "layer":
        return output
    if unit.kind == "neurons":
        return torch.stack([output[f, m, n] for f, m, n in unit.neurons])
    if unit.kind == "prefix":
        return output[unit.channel].reshape(-1)[: unit.first]
    found = output[unit.channel]
    if unit.row is not None:
        found = found[unit.row]
    return found if unit.column is None else found[unit.column]


def plain_loss(text: str, output: Tensor, metric: str, C: float) -> Tensor:
    """One unit's loss, in the article's own words where it has them."""
    focus = focus_of(text, output)
    target = torch.ones_like(focus) * C
    if metric == "l1":
        return torch.sum(target - focus)
    if metric == "l2":
        return 5 * torch.sqrt(torch.sum((target - focus) ** 2))
    if metric == "linf-elementwise":
        return torch.max(torch.abs(target - focus))
    kind = Unit.parse(text).kind
    if kind in ("feature", "row"):
        return torch.linalg.norm(target - focus, ord=math.inf)
    if kind in ("neuron", "neurons"):
        return torch.linalg.norm((target - focus).reshape(-1), ord=math.inf)
    if kind == "layer":
        return max(torch.linalg.norm((target - focus)[c], ord=math.inf) for c in range(len(focus)))
    grid = torch.zeros_like(output[0]).reshape(-1)  # a prefix: the rows of the grid, as far as they belong
    grid[: len(focus)] = (target - focus).abs()
    return grid.reshape(output[0].shape).sum(1).max()


def run(texts: list[str], metric: str, C: float, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return BatchLoss([Objective.parse(t) for t in texts], SHAPES, metric, C)(found)


def test_every_metric_is_there() -> None:
    assert set(METRIC_LOSSES) == set(METRICS)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("C", [200.0, -1.0])
def test_a_mixed_batch_is_its_rows_one_by_one(metric: str, C: float) -> None:
    texts = [*EVERY_KIND, "0.5 * a:1 + 2 * logits:0", "a:2:3 + a:2:3 + -1 * b:1", "a:1:..5 + a:1:..7 + 3 * a:3:1:1"]
    found = outputs(len(texts))
    losses, means = run(texts, metric, C, found)
    assert losses.shape == (len(texts),) and means.shape == (len(texts), 3)
    for row, text in enumerate(texts):
        terms = Objective.parse(text).terms
        expected = sum(w * plain_loss(str(u), found[u.layer][row], metric, C) for w, u in terms)
        assert float(losses[row]) == pytest.approx(float(expected), rel=1e-12), text
        activations = [float(focus_of(str(u), found[u.layer][row]).mean()) for _, u in terms]
        assert means[row, : len(terms)].tolist() == pytest.approx(activations, rel=1e-12), text
        assert means[row, len(terms) :].isnan().all()


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_a_mixed_batch_are_those_of_its_rows(metric: str) -> None:
    texts = [*EVERY_KIND, "0.5 * a:1 + 2 * b:0 + a:1:2"]
    found = {k: v.requires_grad_(True) for k, v in outputs(len(texts), seed=1).items()}
    together = torch.autograd.grad(run(texts, metric, 7.0, found)[0].sum(), list(found.values()))
    for row, text in enumerate(texts):
        loss = sum(w * plain_loss(str(u), found[u.layer][row], metric, 7.0) for w, u in Objective.parse(text).terms)
        expected = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
        for whole, part in zip(together, expected, strict=True):
            own = torch.zeros_like(whole[row]) if part is None else part[row]
            torch.testing.assert_close(whole[row], own, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("text", EVERY_KIND)
def test_gradients_touch_the_units_neurons_only(text: str) -> None:
    for metric in METRICS:
        found = {k: v.requires_grad_(True) for k, v in outputs(1, seed=2).items()}
        loss = run([text], metric, 50.0, found)[0].sum()
        gradients = dict(zip(found, torch.autograd.grad(loss, list(found.values()), allow_unused=True), strict=True))
        unit = Unit.parse(text)
        used, mask = unit.mask(SHAPES[unit.layer])
        inside = np.zeros(SHAPES[unit.layer], dtype=bool)
        inside[used] = True if mask is None else mask
        own = gradients.pop(unit.layer)
        assert all(g is None or not g.any() for g in gradients.values())
        assert not own[0][torch.from_numpy(~inside)].any()
        if metric in ("l1", "l2"):
            assert own[0][torch.from_numpy(inside)].ne(0).all()


@pytest.mark.parametrize("text", EVERY_KIND)
def test_under_l1_the_gradient_does_not_depend_on_C(text: str) -> None:
    gradients = []
    for C in (200.0, 0.0, -1e4):
        found = {k: v.requires_grad_(True) for k, v in outputs(1, seed=3).items()}
        layer = found[Unit.parse(text).layer]
        gradients.append(torch.autograd.grad(run([text], "l1", C, found)[0].sum(), layer)[0])
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    assert set(gradients[0].unique().tolist()) <= {0.0, -1.0} and gradients[0].any()


def test_under_l2_the_target_changes_the_gradient() -> None:
    gradients = []
    for C in (200.0, 1.0):
        found = {k: v.requires_grad_(True) for k, v in outputs(1, seed=3).items()}
        gradients.append(torch.autograd.grad(run(["a:1"], "l2", C, found)[0].sum(), found["a"])[0])
    assert float((gradients[0] - gradients[1]).abs().max()) > 0.1


def test_l2_as_the_article_writes_it() -> None:
    focus = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    loss, means = BatchLoss([channel("x", 0)], {"x": (1, 2, 2)}, "l2", 200.0)({"x": focus[None, None]})
    assert float(loss) == pytest.approx(5 * math.sqrt(199**2 + 198**2 + 197**2 + 204**2), rel=1e-6)
    assert float(means) == pytest.approx(0.5)


def test_linf_is_a_matrix_norm_of_a_grid_and_the_largest_element_of_a_row() -> None:
    focus = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    shapes, found = {"x": (1, 2, 2)}, {"x": focus[None, None]}
    targets = [channel("x", 0), Objective.parse("x:0:0"), Objective.parse("x:0:1:1")]
    losses = [float(BatchLoss([t], shapes, "linf", 200.0)(found)[0]) for t in targets]
    assert losses == [197 + 204, 199, 204]
    assert losses[0] == float(torch.linalg.norm(200 - focus, ord=math.inf))
    assert losses[1] == float(torch.linalg.norm(200 - focus[0], ord=math.inf))
    elementwise = [float(BatchLoss([t], shapes, "linf-elementwise", 200.0)(found)[0]) for t in targets]
    assert elementwise == [204, 199, 204]


@pytest.mark.parametrize("metric", METRICS)
def test_the_gradient_of_a_sum_is_the_sum_of_the_gradients(metric: str) -> None:
    # the article, section "Layer and Neuron Interactions": adding before the step is adding the gradients

    def gradients(text: str) -> list[Tensor]:
        found = {k: v.requires_grad_(True) for k, v in outputs(1, seed=4).items()}
        loss = run([text], metric, 200.0, found)[0].sum()
        used = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
        return [torch.zeros_like(v) if g is None else g for g, v in zip(used, found.values(), strict=True)]

    both = gradients("0.3 * a:1 + 2 * b:2:0 + a:1:..4")
    parts = [gradients("a:1"), gradients("b:2:0"), gradients("a:1:..4")]
    for k, whole in enumerate(both):
        expected = 0.3 * parts[0][k] + 2 * parts[1][k] + parts[2][k]
        torch.testing.assert_close(whole, expected, rtol=1e-6, atol=1e-9)


@given(st.lists(sums, min_size=1, max_size=6), st.randoms(use_true_random=False))
@repeatable
def test_rows_may_stand_in_any_order(targets: list[Objective], random: object) -> None:
    found = outputs(len(targets), seed=5)
    order = list(range(len(targets)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for metric in METRICS:
        losses, means = BatchLoss(targets, SHAPES, metric, 200.0)(found)
        shuffled = BatchLoss([targets[k] for k in order], SHAPES, metric, 200.0)
        again, means_again = shuffled({k: v[order] for k, v in found.items()})
        torch.testing.assert_close(again, losses[order], rtol=1e-12, atol=0)
        torch.testing.assert_close(means_again, means[order], rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("text", ["a:1", "a:1:2", "a:1:0:1", "a:all", "logits:0", "0.3 * a:1 + 2 * b:2"])
def test_contrast_subtracts_what_is_typical_of_the_layer(text: str, spread: float) -> None:
    found = {k: v.requires_grad_(True) for k, v in outputs(1, seed=6).items()}
    targets = [Objective.parse(text)]
    plain, means = BatchLoss(targets, SHAPES, "l1", 200.0)(found)
    losses, same_means = BatchLoss(targets, SHAPES, "l1", 200.0, contrast=(0.7, spread))(found)
    assert torch.equal(means, same_means), "the activation that is recorded is the unit's own"
    expected = plain[0].item()
    for weight, unit in targets[0].terms:
        values, (channels, mask) = found[unit.layer][0].detach().numpy().astype(float), unit.mask(SHAPES[unit.layer])
        inside = np.ones_like(values[channels]) if mask is None else mask
        expected += weight * (inside * 0.7 * (values.mean(0) + spread * values.std(0))).sum()
    assert losses[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("factor", [1e-25, 1.0, 1e25])
def test_contrast_scales_with_the_responses(factor: float) -> None:
    gradients = []
    for scale in (1.0, factor):
        values = (outputs(1, seed=6)["a"] * scale).requires_grad_(True)
        losses, _ = BatchLoss([channel("a", 1)], SHAPES, "l1", 0.0, contrast=(1.0, 1.0))({"a": values})
        gradients.append(torch.autograd.grad(losses.sum(), values)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_equal_features_have_the_gradient_of_their_mean() -> None:
    values = torch.full_like(outputs(1, seed=6)["a"], 3.0).requires_grad_(True)
    losses, _ = BatchLoss([channel("a", 1)], SHAPES, "l1", 200.0, contrast=(1.0, 1.0))({"a": values})
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    expected = torch.full_like(values, 1 / values.shape[1])
    expected[:, 1] -= 1
    torch.testing.assert_close(gradient, expected)


def test_a_layer_of_one_channel_has_no_contrast() -> None:
    values = {"one": torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(1))}
    both = [
        BatchLoss([channel("one", 0)] * 2, {"one": (1, 3, 3)}, "l1", 200.0, contrast=contrast)(values)[0]
        for contrast in (0.0, (1.0, 1.0))
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_direction_is_contrasted_as_if_its_channels_were(spread: float) -> None:
    found = {k: v.clone().requires_grad_(True) for k, v in outputs(2, seed=6).items()}
    channels = found["a"].shape[1]
    vectors = np.random.default_rng(1).normal(size=(3, channels)).astype(np.float32)
    sets, shapes = {"a/d": Directions(vectors)}, SHAPES | {"a/d": (3, *SHAPES["a"][1:])}
    along = torch.einsum("kc,nchw->nkhw", torch.from_numpy(vectors).to(found["a"]), found["a"])
    objectives = [channel("a/d", 2), channel("a/d", 0)]
    loss = BatchLoss(objectives, shapes, "l1", 200.0, contrast=(0.7, spread), directions=sets)
    losses, means = loss(found | {"a/d": along})
    values = found["a"].detach()
    typical = values.mean(1, keepdim=True) + spread * values.std(1, correction=0, keepdim=True)
    centred = values - 0.7 * typical
    for row, k in ((0, 2), (1, 0)):
        own = (torch.from_numpy(vectors[k]).to(centred)[:, None, None] * centred[row]).sum(0)
        torch.testing.assert_close(losses[row].detach(), (200.0 - own).sum(), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(means[row, 0], along[row, k].mean().detach())


def test_silent_neurons_get_no_contrast() -> None:
    found = {k: v.clone() for k, v in outputs(1, seed=6).items()}
    found["a"][0, 1, 0] = 0.0
    values = found["a"].requires_grad_(True)
    losses, _ = BatchLoss([channel("a", 1)], SHAPES, "l1", 200.0, contrast=1.0)(found)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert not gradient[0, [0, 2, 3], 0].any(), "other features at the silent positions"
    assert gradient[0, [0, 2, 3], 1:].all()


def test_units_out_of_range_are_refused() -> None:
    with pytest.raises(UnitError, match="channel 5 is out of range"):
        BatchLoss([channel("a", 5)], SHAPES, "l1", 200.0)


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_that_is_not_finite_leaves_the_others_alone(metric: str) -> None:
    texts = ["a:1", "a:2", "a:3:1", "logits:0"]
    clean, dirty = outputs(4, seed=6), outputs(4, seed=6)
    dirty["a"][1] = math.nan
    for found in (clean, dirty):
        for value in found.values():
            value.requires_grad_(True)
    losses, means = run(texts, metric, 200.0, clean)
    with_nan, means_with_nan = run(texts, metric, 200.0, dirty)
    others = [0, 2, 3]
    assert with_nan[1].isnan() and means_with_nan[1].isnan()
    assert torch.equal(with_nan[others], losses[others]) and torch.equal(means_with_nan[others], means[others])
    (expected,) = torch.autograd.grad(losses.sum(), clean["a"])
    (gradient,) = torch.autograd.grad(with_nan.sum(), dirty["a"])
    assert torch.equal(gradient[others], expected[others])


@pytest.mark.parametrize("metric", METRICS)
def test_what_lies_outside_a_unit_does_not_count(metric: str) -> None:
    found = outputs(1, seed=7)
    losses, means = run(["a:1:2:1"], metric, 200.0, found)
    found["a"][0, 1, 0, 0] = math.nan
    again, means_again = run(["a:1:2:1"], metric, 200.0, found)
    assert torch.equal(again, losses) and torch.equal(means_again, means)
