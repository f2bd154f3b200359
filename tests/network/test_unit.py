from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featmap.errors import FeatmapError, UnitError
from featmap.network.unit import (
    Shape,
    Unit,
    format_channels,
    names_read_otherwise,
    number_names,
    parse_channels,
    split_call,
)

repeatable = settings(derandomize=True, deadline=None, max_examples=150)

names = st.text("abzAZ_.@019-+ *", min_size=1, max_size=8).filter(lambda name: name == name.strip())
index = st.integers(0, 999_999_999)
points = st.tuples(index, index, index)
units = st.one_of(
    st.builds(Unit, names),
    st.builds(Unit, names, index),
    st.builds(Unit, names, index, index),
    st.builds(Unit, names, index, index, index),
    st.builds(lambda n, f, k: Unit(n, f, first=k), names, index, index),
    st.builds(lambda n, p: Unit(n, neurons=tuple(sorted(p))), names, st.sets(points, min_size=2, max_size=5)),
)


@given(units)
@repeatable
def test_what_is_printed_parses_to_the_same_unit(unit: Unit) -> None:
    assert Unit.parse(str(unit)) == unit
    assert str(Unit.parse(str(unit))) == str(unit)


@given(units)
@repeatable
def test_space_around_an_expression_is_ignored(unit: Unit) -> None:
    assert Unit.parse(f"  {unit}\t") == unit


@pytest.mark.parametrize(
    ("text", "unit", "kind"),
    [
        ("inception4a:17", Unit("inception4a", 17), "feature"),
        ("Mixed_6b:3:0", Unit("Mixed_6b", 3, 0), "row"),
        ("layer3.2:3:4:5", Unit("layer3.2", 3, 4, 5), "neuron"),
        ("layer3.2.relu@2:3", Unit("layer3.2.relu@2", 3), "feature"),
        ("a:2:1:0+0:1:2", Unit("a", neurons=((0, 1, 2), (2, 1, 0))), "neurons"),
        ("a:2:1:0+2:1:0+0:0:0", Unit("a", neurons=((0, 0, 0), (2, 1, 0))), "neurons"),
        ("a:5:..7", Unit("a", 5, first=7), "prefix"),
        ("a", Unit("a"), "layer"),
        ("a:all", Unit("a"), "layer"),
        ("class:207", Unit("class", 207), "feature"),
        ("a:007", Unit("a", 7), "feature"),
    ],
)
def test_every_form_of_the_grammar(text: str, unit: Unit, kind: str) -> None:
    assert Unit.parse(text) == unit
    assert Unit.parse(text).kind == kind


MALFORMED = [
    "",
    "   ",
    ":",
    ":3",
    "a:",
    "a:b",
    "a:1:",
    "a::1",
    "a:1:2:3:4",
    "a:-1",
    "a:1.5",
    "a:1e3",
    "a:0x1",
    "a:1,2",
    "a:1-2",
    "a: 1",
    "a:1 2",
    "a:ALL",
    "a:all:1",
    "a:1:..",
    "a:1:..x",
    "a:1:..-2",
    "a:..3",
    "a:1:2:..3",
    "a:1:..3:4",
    "a:+",
    "a:1+2",
    "a:1:2:3+",
    "a:1:2:3+4:5",
    "a:1:2:3 + 4:5:6",
    "a:\u0663",
    "a:\u00b2",
    "a:12345678901",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_units_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UnitError) as caught:
        Unit.parse(text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert repr(text) in message
    assert "layer:f (feature)" in message, "the message says what is allowed"


@given(st.text(max_size=12))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_text_is_a_unit_or_a_unit_error(text: str) -> None:
    try:
        unit = Unit.parse(text)
    except UnitError as error:
        assert text.strip() in str(error) or repr(text) in str(error)
    else:
        assert unit.layer and text.strip().startswith(unit.layer)


def test_a_unit_error_is_a_featmap_error() -> None:
    assert issubclass(UnitError, FeatmapError)


def members(unit: Unit, shape: Shape) -> set[tuple[int, int, int]]:
    """The neurons of a unit, from the words of the grammar's table."""
    channels, height, width = shape
    everything = [(f, m, n) for f in range(channels) for m in range(height) for n in range(width)]
    if unit.kind == "layer":
        return set(everything)
    if unit.kind == "neurons":
        return set(unit.neurons)
    of_channel = [p for p in everything if p[0] == unit.channel]
    if unit.kind == "prefix":
        return set(of_channel[: unit.first])
    if unit.kind == "row":
        return {p for p in of_channel if p[1] == unit.row}
    if unit.kind == "neuron":
        return {(unit.channel, unit.row, unit.column)}
    return set(of_channel)


@st.composite
def units_in_grids(draw: st.DrawFn) -> tuple[Unit, Shape]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)))
    f, m, n = (st.integers(0, size - 1) for size in shape)
    unit = draw(
        st.one_of(
            st.just(Unit("a")),
            st.builds(Unit, st.just("a"), f),
            st.builds(Unit, st.just("a"), f, m),
            st.builds(Unit, st.just("a"), f, m, n),
            st.builds(lambda c, k: Unit("a", c, first=k), f, st.integers(1, shape[1] * shape[2])),
            st.builds(
                lambda p: Unit("a", neurons=tuple(sorted(p))),
                st.sets(st.tuples(f, m, n), min_size=1, max_size=6),
            ),
        )
    )
    return unit, shape


@given(units_in_grids())
@repeatable
def test_masks_hold_exactly_the_units_neurons(case: tuple[Unit, Shape]) -> None:
    unit, shape = case
    channels, mask = unit.mask(shape)
    whole = np.ones((len(channels), *shape[1:]), dtype=bool) if mask is None else mask
    assert whole.dtype == bool and whole.shape == (len(channels), *shape[1:])
    found = {(channels[p], m, n) for p, m, n in zip(*(a.tolist() for a in np.nonzero(whole)), strict=True)}
    assert found == members(unit, shape)
    assert len(set(channels)) == len(channels)


def test_masks_are_left_out_only_where_every_neuron_belongs() -> None:
    shape = (3, 2, 2)
    assert Unit("a", 1).mask(shape) == ([1], None)
    assert Unit("a").mask(shape) == ([0, 1, 2], None)
    assert Unit("a", 1, first=4).mask(shape)[1] is not None


def test_a_prefix_reads_like_a_book() -> None:
    _, mask = Unit("a", 0, first=4).mask((1, 3, 3))
    assert mask is not None
    assert mask[0].astype(int).tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:4", "channel 4 is out of range; a is 4 x 2 x 3 here, so 0 to 3 are allowed"),
        ("a:0:2", "row 2 is out of range; a is 4 x 2 x 3 here, so 0 to 1 are allowed"),
        ("a:0:1:3", "column 3 is out of range; a is 4 x 2 x 3 here, so 0 to 2 are allowed"),
        ("a:0:0:0+1:2:0", "row 2 is out of range"),
        ("a:0:0:0+9:0:0", "channel 9 is out of range"),
        ("a:0:..7", "a prefix of 7 neurons; the grid is 2 x 3, so 1 to 6 are allowed"),
        ("a:0:..0", "a prefix of 0 neurons"),
        ("a:4:..2", "channel 4 is out of range"),
    ],
)
def test_out_of_range_is_named_with_what_is_allowed(text: str, words: str) -> None:
    unit = Unit.parse(text)
    for use in (unit.check, unit.mask):
        with pytest.raises(UnitError) as caught:
            use((4, 2, 3))
        assert words in str(caught.value)
        assert str(caught.value).startswith(f"{text}: ")
        assert len(str(caught.value).splitlines()) == 1


def test_check_returns_the_unit() -> None:
    unit = Unit.parse("a:3:1:2")
    assert unit.check((4, 2, 3)) is unit


def test_units_of_another_layer_and_labels() -> None:
    assert Unit.parse("a:3:1").with_layer("b") == Unit("b", 3, 1)
    assert [str(unit) for unit in (Unit("a", 1), Unit("b"))] == ["a:1", "b:all"]
    assert {Unit("a", 1), Unit("a", channel=1)} == {Unit("a", 1)}, "units are values"


@pytest.mark.parametrize(
    ("layer", "path", "call"),
    [("a.b", "a.b", 1), ("a.b@2", "a.b", 2), ("a@1", "a", 1), ("a@1@3", "a@1", 3), ("a@b", "a@b", 1), ("a@", "a@", 1)],
)
def test_a_layer_is_split_into_its_module_and_its_call(layer: str, path: str, call: int) -> None:
    assert split_call(layer) == (path, call)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=6))
@repeatable
def test_channel_lists_are_sets_of_ranges(pieces: list[tuple[int, int]]) -> None:
    written = [str(low) if more == 0 else f"{low}-{low + more}" for low, more in pieces]
    expected = sorted({c for low, more in pieces for c in range(low, low + more + 1)})
    assert parse_channels(",".join(written), 64) == expected
    assert parse_channels(" , ".join(written), 64) == expected


def test_channel_lists_and_all_become_numbers() -> None:
    assert parse_channels("all", 5) == [0, 1, 2, 3, 4]
    assert parse_channels(" all ", 2) == [0, 1]
    assert parse_channels("0-15,42", 64) == [*range(16), 42]


@given(st.sets(st.integers(0, 40), min_size=1))
@repeatable
def test_channels_that_are_written_are_read_again(chosen: set[int]) -> None:
    text = format_channels(sorted(chosen))
    assert parse_channels(text, 41) == sorted(chosen)
    assert len(text.split(",")) == sum(c - 1 not in chosen for c in chosen), "as few ranges as there are"


@pytest.mark.parametrize(
    "text", ["", " ", ",", "1,", ",1", "a", "-", "1-", "-1", "1--2", "1-2-3", "1.5", "1:2", "1;2", "0x1", "al", "١"]
)
def test_malformed_channel_lists_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UnitError, match="is not a number or range; write 0-15,42 or all") as caught:
        parse_channels(text, 64)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5-3", "the range 5-3 runs backwards; write 3-5"),
        ("8", "channel 8 is out of range; inception4a has 8 channels, so 0 to 7 are allowed"),
        ("0-8", "channel 8 is out of range"),
        ("3,700000000", "channel 700000000 is out of range"),
        ("0-999999999", "channel 999999999 is out of range"),
    ],
)
def test_impossible_channel_lists(text: str, words: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_channels(text, 8, "inception4a")
    assert words in str(caught.value)
    assert repr(text) in str(caught.value)


def test_names_of_directions_become_numbers() -> None:
    names = {"4a/sae": ("eyes", "eyes: two", "3", "a-b"), "4a/x": ("u",)}
    for text, expected in {
        "4a/sae:eyes": "4a/sae:0",
        "4a/sae:eyes: two": "4a/sae:1",
        "4a/sae:eyes:2:1": "4a/sae:0:2:1",
        "4a/sae:eyes: two:..4": "4a/sae:1:..4",
        "0.5 * 4a/sae:a-b + 4a/x:u": "0.5 * 4a/sae:3 + 4a/x:0",
        "4a/sae:3": "4a/sae:3",
        "4a/sae:1:0:0+2:1:1": "4a/sae:1:0:0+2:1:1",
        "4a/sae:all": "4a/sae:all",
        "4a:17": "4a:17",
        "4a/sae": "4a/sae",
    }.items():
        assert number_names(text, names) == expected
    with pytest.raises(UnitError, match=r"4a/sae has no direction 'eye' \(nearest: eyes"):
        number_names("4a/sae:eye", names)
    assert parse_channels("a-b,0,3", 4, "4a/sae", names["4a/sae"]) == [0, 3]


def test_names_that_begin_with_a_digit_or_hold_colons_are_found() -> None:
    names = {"0/s": ["12 eyes", "2 * x", "a:b", "eyes"]}
    for k, name in enumerate(names["0/s"]):
        assert number_names(f"0/s:{name}", names) == f"0/s:{k}"
        assert number_names(f"0.5 * 0/s:{name} + 0:1", names) == f"0.5 * 0/s:{k} + 0:1"
    assert number_names("0/s:3:1:1", names) == "0/s:3:1:1"


def test_names_may_hold_what_separates_units_and_channels() -> None:
    known = ["a+b", "c,d", "e + f", "e + f + g", "a*b", "x"]
    names = {"0/s": known, "1": known}
    for k, name in enumerate(known):
        assert number_names(f"0/s:{name}", names) == f"0/s:{k}"
        assert number_names(f"2 * 1:{name} + 0/s:{name}:1", names) == f"2 * 1:{k} + 0/s:{k}:1"
        assert number_names(f"2*1:{name} + 0.5*0/s:{name}", names) == f"2*1:{k} + 0.5*0/s:{k}"
        assert parse_channels(name, 6, "0/s", known) == [k]
        assert parse_channels(f"5,{name} , 0", 6, "0/s", known) == sorted({0, k, 5})
    assert parse_channels("c,d,a+b,1-2", 6, "0/s", known) == [0, 1, 2]
    with pytest.raises(UnitError, match="'e' is not a number or range"):
        parse_channels("e,c,d", 6, "0/s", known)


def test_names_that_are_read_as_something_else_are_listed_or_refused() -> None:
    known = ["0", "7", "all", "1-3", "1:2", "eyes", "c", "d", "c,d", "0-c"]
    assert names_read_otherwise(known) == [1, 2, 3, 4]
    assert parse_channels("1-3", 10, "0/s", known) == [1, 2, 3]
    assert parse_channels("7,0", 10, "0/s", known) == [0, 7]
    assert parse_channels("all", 10, "0/s", known) == list(range(10))
    assert parse_channels("0-c,c", 10, "0/s", known) == [6, 9]
    with pytest.raises(UnitError, match="'c,d' may be one direction or 2; write numbers, such as 8"):
        parse_channels("eyes,c,d", 10, "0/s", known)
    with pytest.raises(UnitError, match="all of 0/s or its direction 'all'; write 0/s or 0/s:2"):
        number_names("0/s:all", {"0/s": known})
    assert number_names("0/s:all", {"0/s": ["eyes"]}) == "0/s:all"
    assert number_names("0/s:2", {"0/s": known}) == "0/s:2"
