"""What the page of studies says of verdicts: their table, where networks disagree, what stands beside a result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from analyses import tables
from analyses.support import verdicts
from analyses.support.study import NETWORKS, Study
from tests.analyses.test_study_tables import STUDY, finding, record


def test_the_table_of_verdicts_has_a_row_for_each_study_and_a_column_for_each_network() -> None:
    other = replace(STUDY, name="other")
    records = {
        "some": {"reference": record("reference"), "own": record("own", verdict="does not hold", origin="a zoo | <b>")},
        "other": {"resnet50": record("resnet50") | {"network": "network resnet50, weights random:0"}},
    }
    text = verdicts.verdict_table([STUDY, other], records)
    assert text.splitlines()[2:6] == [
        f"| study | claim | {' | '.join(NETWORKS).replace('reference', 'reference (bundled)')} | own |",
        f"|---|---|{'---|' * 6}",
        f"| [some](#some) |  | holds (4 x 2) |{' not measured |' * 4} does not hold (4 x 2) |",
        f"| [other](#other) |  |{' not measured |' * 6}",
    ]
    assert text.splitlines()[-1] == (
        "`own`: a zoo | &lt;b> (weights 0123456789ab). These weights are not part of the project."
    )


def test_a_verdict_names_the_parts_that_hold_and_the_sample() -> None:
    parts = "That it rises holds: by 0.5. That b does not hold, as measured. That d is not decided. That e holds."
    assert verdicts.describe_verdict(STUDY, record("own", conclusion=parts)) == "holds (2 of 4; 4 x 2)"
    assert verdicts.describe_verdict(STUDY, record("own", conclusion="That it rises holds.")) == "holds (4 x 2)"
    partly = record("own", conclusion="That it rises holds in part, by 0.5. That b does not hold.")
    assert verdicts.describe_verdict(STUDY, partly) == "holds (0 of 2, 1 in part; 4 x 2)"
    pairs = [verdicts.describe_verdict(replace(STUDY, name=name), record("own")) for name in verdicts.SAMPLES]
    assert pairs == ["holds (1 pair x 2)", "holds (4 pairs x 2)", "holds (maps x 2)"]
    once = record("own", settings=record("own")["settings"] | {"seeds": 1})
    names = ("some", "neuron_growth")
    assert [verdicts.describe_verdict(replace(STUDY, name=n), once)[-3:] for n in names] == [" 1)", " 2)"], (
        "two at least"
    )


def test_a_verdict_names_the_size_of_its_images() -> None:
    used = [{"recipe": "a", "sizes": [76, 86, 96], "steps": 100}, {"recipe": "b", "sizes": [96], "steps": 1}]
    assert verdicts.describe_verdict(STUDY, record("own", descents=used)) == "holds (4 x 2, 96 px)"
    both = [*used, {"recipe": "c", "sizes": [224], "steps": 1}]
    assert verdicts.describe_verdict(STUDY, record("own", descents=both)) == "holds (4 x 2, 96 and 224 px)"


def test_networks_that_disagree_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"reference": record("reference"), "own": record("own")}
    assert verdicts.describe_disagreement("some", records) == ""
    records["own"]["verdict"] = "not decided"
    assert verdicts.describe_disagreement("some", records) == "", "undecided is no disagreement"
    records |= {"third": record("third", verdict="does not hold"), "fourth": record("fourth")}
    expected = (
        "The networks disagree about the claim: it holds on reference and fourth, it is not decided on own, "
        "it does not hold on third."
    )
    assert verdicts.describe_disagreement("some", records) == expected
    assert expected in tables.study_section(STUDY, records).splitlines()
    more = records | {"fifth": record("fifth")}
    assert "it holds on reference, fourth and fifth, it" in verdicts.describe_disagreement("some", more)
    monkeypatch.setitem(verdicts.REASONS, "some", "Its layers are small.")
    assert verdicts.describe_disagreement("some", records) == f"{expected} Its layers are small."


def test_parts_of_a_claim_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = "That it rises holds: by 0.5. That b, and c, does not hold, as measured. That d is not decided."
    two = "In 3 pairs, the claim that it rises does not hold: by 0.1. That b, and c, does not hold. That d holds."
    records = {"reference": record("reference", conclusion=one), "own": record("own", conclusion=two)}
    expected = (
        "Parts of the claim that differ between networks: that it rises holds on reference, does not hold on own; "
        "that d is not decided on reference, holds on own."
    )
    assert verdicts.describe_parts("some", records) == expected
    assert expected in tables.study_section(STUDY, records).splitlines()
    assert verdicts.describe_parts("some", {"reference": records["reference"]}) == ""
    partly = {"third": record("third", conclusion="That it rises holds in part: by 0.5. That d holds in part.")}
    assert "that it rises holds on reference, does not hold on own, holds in part on third" in verdicts.describe_parts(
        "some", records | partly
    )
    monkeypatch.setitem(verdicts.PART_REASONS, "some", "their layers are small.")
    reason = "As far as the measured values tell why: their layers are small."
    assert verdicts.describe_parts("some", records) == f"{expected} {reason}"
    assert verdicts.describe_parts("some", {"reference": records["reference"]}) == "", "no reason without a difference"


def test_what_is_said_beside_a_result_depends_on_what_was_measured() -> None:
    named = replace(STUDY, units={"inception_v3": ("one:654", "one:415")})
    drawn = record("inception_v3", origin="a zoo")

    def say(study: Study, units: list[str] | None = None, **changes: Any) -> list[str]:
        settings = drawn["settings"] | ({"units": units} if units else {})
        return verdicts.describe_caveats(study, "inception_v3", drawn | {"settings": settings} | changes)

    assert say(STUDY) == []
    assert say(named) == ["The features were drawn, and are not those that the article shows (one:654 and one:415)"]
    other = verdicts.OTHER_FEATURES["inception_v3"]
    assert "the same numbers" in other and "most likely" in other
    both = ["one:654", "one:415"]
    of_both = "Two of the four features of one have the numbers that the article names (one:654 and one:415)"
    assert say(named, both) == [f"{of_both}; {other}"] and say(named, both, origin="") == [of_both]
    (one,) = say(named, ["one:654"])
    assert one.startswith("One of the four features of one has the numbers that the article names (one:654); one:415")
    assert "; one:415 were not measured; " in one
    layers = replace(STUDY, units={"inception_v3": ("one:1", "two:1", "two:2")})
    (text,) = say(layers, ["one:1", "two:1", "two:2"], origin="")
    assert text.startswith("One of the four features of one and two of the four features of two have the numbers that")
    four = [f"one:{k}" for k in range(4)]
    (all_,) = say(replace(STUDY, units={"inception_v3": tuple(four)}), four, origin="")
    assert all_.startswith("The features have the numbers that the article names (one:0 and one:1"), "none is drawn"
    (with_own,) = say(named, [*both, "one:7"], origin="")
    assert with_own == of_both, "of units that the article does not name nothing is said"
    partly = replace(STUDY, units={"inception_v3": (*four, "two:1")})
    (whole,) = say(partly, [*four, "two:1"], origin="")
    assert whole.startswith("The features of one and one of the four features of two have the numbers that the article")
    assert say(STUDY, ["one:7"]) == ["Features that were named: one:7; the others were drawn"]
    first = replace(STUDY, units={"inception_v3": ("first",)})
    assert say(first, ["first"]) == [
        f"The features have the numbers that the article names (the first ones of each layer); {other}"
    ]
    pair = replace(STUDY, name="joint_pair")
    (same,) = say(pair, findings=[finding(name="random_excess", count=30)])
    assert same == f"The features of the pair have the numbers that the article names; {other}"
    _, few = say(pair, findings=[finding(name="random_excess", count=1)])
    assert few.startswith("1 random pair was measured beside it")
    unit = replace(STUDY, name="maximised_unit")
    pair, alone = say(unit)
    assert alone == "With one neuron in each branch, means of branches have no interval"
    assert pair.startswith("The article finds that a neuron of 415, an interior channel,")
    assert say(unit, settings=drawn["settings"] | {"features": 8}) == [pair]
    growth, words = replace(STUDY, name="neuron_growth"), "the share; of 8 drawn (4 not changed)"
    shares = [finding(name="outside:one", words=words, count=4), finding(name="outside:two", words=words, count=6)]
    assert say(growth, findings=shares) == [
        "The share outside the field in one is of 4 of 8 drawn features (4 not changed)"
    ]
