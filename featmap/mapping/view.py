"""The view of a similarity run: features shown, stimuli, probed layers and measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featmap.errors import FeatmapError, UnitError, suggest
from featmap.files import digest
from featmap.stats.facets import check_facets
from featmap.stats.measures import FORMULA, LINEAR, MEASURES

PHOTOGRAPHS = "photographs"
STIMULI = ("layer", "shown", PHOTOGRAPHS)
PHOTOGRAPH_RESPONSES, PHOTOGRAPH = "photograph_A", "photograph"
"""Array of the responses to photographs, and its coordinate, their names."""
DEFAULT_NEIGHBOURS, DEFAULT_EXAMPLES = 10, 9
MOST_EXAMPLES = 20
"""Most photographs of a feature that a row of a sheet has room for."""
Features = str | Sequence[int] | Mapping[str, str | Sequence[int]]


@dataclass(frozen=True)
class View:
    """The features that a map shows, its stimuli, probed layers and measure.

    Parameters
    ----------
    shown : str, sequence of int or mapping, default "all"
        Channels that tables and figures show: "all", "0-15,42", ``[0, 1, 2]``, or any of these by layer.
    stimuli : str, default "layer"
        "layer": the maximising images of all features of the layer are the stimuli; "shown": only those of the
        features shown, which takes less time and gives other similarities; "photographs": photographs alone, and no
        image is made.
    measure : str, default "coactivation"
        Measure of the heatmap, a key of `featmap.stats.measures.MEASURES`.
    neighbours : int, default 10
        Nearest neighbours of each feature in the graph, 1 or more.
    facets : int, default 0
        Images of each feature that differ, 2 to 16, its ordinary one included; 0 makes no others. They are no stimuli.
    probe_layers : str or sequence of str, optional
        Of a map of a single layer: other layers, whose responses to its images are recorded in the same forward passes.
    examples : int, default 9
        Photographs that excite a feature most, 1 to `MOST_EXAMPLES`, of a run with photographs.

    Raises
    ------
    FeatmapError
        If a value is unknown or out of range.
    """

    shown: Features = "all"
    stimuli: str = "layer"
    measure: str = "coactivation"
    neighbours: int = DEFAULT_NEIGHBOURS
    facets: int = 0
    probe_layers: str | Sequence[str] | None = ()
    examples: int = DEFAULT_EXAMPLES

    def __post_init__(self) -> None:
        if self.stimuli not in STIMULI:
            raise UnitError(
                f"stimuli {self.stimuli!r} is unknown; allowed: layer (images of all its features), shown, or "
                "photographs"
            )
        if self.measure not in MEASURES:
            raise FeatmapError(
                f"measure {self.measure!r} is unknown{suggest(self.measure, MEASURES)}; allowed: {', '.join(MEASURES)}"
            )
        check_facets(self.facets)
        if self.stimuli == PHOTOGRAPHS and self.measure not in (View.measure, "profile", "linear_profile"):
            raise FeatmapError(
                f"measure {self.measure!r}: over photographs alone there is profile similarity only; leave the measure "
                "out, or map images too"
            )
        if self.examples not in range(1, MOST_EXAMPLES + 1):
            raise FeatmapError(f"examples {self.examples}: give a number of photographs from 1 to {MOST_EXAMPLES}")
        if self.neighbours < 1:
            raise FeatmapError(
                f"neighbours {self.neighbours}: a neighbour graph takes 1 or more; {DEFAULT_NEIGHBOURS} is the default"
            )

    def channels(self, layers: Sequence[str]) -> dict[str, str]:
        """List the channels shown of each layer.

        Parameters
        ----------
        layers : sequence of str
            Mapped layers.

        Returns
        -------
        dict of str to str
            Channels in the form that `featmap.network.unit.parse_channels` reads, by layer.

        Raises
        ------
        UnitError
            If `shown` is a mapping and names other layers.
        """
        if isinstance(self.shown, Mapping):
            if set(self.shown) != set(layers):
                raise UnitError(
                    f"features are listed for the layers {', '.join(map(str, self.shown))}, "
                    f"the run maps {', '.join(layers)}; name the same layers, or give one list for all"
                )
            listed: dict[str, str | Sequence[int]] = dict(self.shown)
        else:
            listed = dict.fromkeys(layers, self.shown)
        return {name: text if isinstance(text, str) else ",".join(map(str, text)) for name, text in listed.items()}

    def probed(self) -> list[str]:
        """List the probed layers.

        Returns
        -------
        list of str
            Each once, in the order in which they were given.
        """
        return list(
            dict.fromkeys([self.probe_layers] if isinstance(self.probe_layers, str) else self.probe_layers or ())
        )

    def record(self, reliability: Mapping[str, float | None]) -> dict[str, Any]:
        """Collect what tables and figures depend on besides the arrays.

        Parameters
        ----------
        reliability : mapping
            Reliability by feature; empty before a validation.

        Returns
        -------
        dict
            Entry `view` of the manifest: measure, neighbours, formula of S, the number of examples where it is not the
            usual one, and a digest of the reliability.
        """
        values: dict[str, Any] = {"measure": self.measure, "neighbours": self.neighbours, "formula": FORMULA}
        values |= {"examples": self.examples} if self.examples != DEFAULT_EXAMPLES else {}
        return values | ({"reliability": digest(dict(reliability))} if reliability else {})

    @staticmethod
    def from_record(values: Mapping[str, Any]) -> View:
        """Read a view from a manifest.

        Parameters
        ----------
        values : mapping
            Entry `view`, see `record`; missing entries take their defaults.

        Returns
        -------
        View
            Its measure, neighbours and examples; the other fields are not recorded and take their defaults.
        """
        return View(
            measure=values.get("measure", "coactivation"),
            neighbours=int(values.get("neighbours", DEFAULT_NEIGHBOURS)),
            examples=int(values.get("examples", DEFAULT_EXAMPLES)),
        )


def recorded_formula(values: Mapping[str, Any]) -> int:
    """Read from a manifest by which formula S was computed.

    Parameters
    ----------
    values : mapping
        Entry `view`, see `View.record`.

    Returns
    -------
    int
        `featmap.stats.measures.FORMULA`, or `LINEAR` for records of versions that had no other.
    """
    return int(values.get("formula", LINEAR))
