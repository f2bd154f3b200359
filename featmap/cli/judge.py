"""The command `featmap judge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featmap.cli.options import Device, RunNetworkOptions, load_network
from featmap.cli.parsing import PhotographOptions, parse_numbers
from featmap.errors import FeatmapError
from featmap.image_shape import as_pair, parse_size

if TYPE_CHECKING:
    from featmap.network.model import Network

OWN = "-"
"""Value of an option that leaves one of several judges as it is."""


@dataclass
class JudgeOptions:
    """Options that name the judges and how each is loaded.

    Parameters
    ----------
    by : list of str
        Names or import paths of the networks.
    by_weights, by_mean, by_std, by_input_size : list of str or None
        One value for all of them, or one for each in their order.
    """

    by: Annotated[
        list[str] | None,
        typer.Option(help="Another network, named as --model names one; may be given several times."),
    ] = None
    by_weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights of the judges, as --weights. Given once it holds for every judge; given once for each --by, "
            "in their order; - leaves one as it is."
        ),
    ] = None
    by_mean: Annotated[
        list[str] | None, typer.Option(help="Mean that the judges' input is normalised by; once, or once for each.")
    ] = None
    by_std: Annotated[
        list[str] | None, typer.Option(help="Standard deviation that goes with it; once, or once for each.")
    ] = None
    by_input_size: Annotated[
        list[str] | None,
        typer.Option(help="Size of the judges' images, such as 224 or 64x128; once, or once for each."),
    ] = None

    def load(self) -> list[Network]:
        """Load the judges and print the lines that name them.

        Returns
        -------
        list of Network
            In the order given.

        Raises
        ------
        FeatmapError
            If there is no judge, or an option is given neither once nor once for each.
        """
        names = self.by or []
        if not names:
            raise FeatmapError("--by is missing: name another network, such as --by squeezenet1_1")
        weights, means = self._of_each("--by-weights", self.by_weights), self._of_each("--by-mean", self.by_mean)
        stds, sizes = self._of_each("--by-std", self.by_std), self._of_each("--by-input-size", self.by_input_size)
        for mean, std, size in zip(means, stds, sizes, strict=True):
            if (mean is None) != (std is None):
                raise FeatmapError("--by-mean and --by-std belong together; give both, or neither, for each judge")
            parse_numbers(mean, "--by-mean")
            parse_numbers(std, "--by-std")
            pixels = parse_size(size, "--by-input-size")
            if pixels is not None and min(as_pair(pixels)) < 1:
                raise FeatmapError(f"--by-input-size {size}: give 1 pixel or more, such as 224")
        return [load_network(name, weights[k], means[k], stds[k], sizes[k]) for k, name in enumerate(names)]

    def _of_each(self, option: str, values: list[str] | None) -> list[str | None]:
        """Return the value of an option for each judge."""
        count, each = len(self.by or []), values or [OWN]
        if len(each) not in (1, count):
            raise FeatmapError(
                f"{option} is given {len(each)} times for {count} judges; give it once, or once for each"
            )
        return [None if v == OWN else v for v in (each if len(each) == count else each * count)]


def judge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of maximise or similarity.")],
    judges: JudgeOptions,
    network: RunNetworkOptions,
    photographs: PhotographOptions,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: RUN/judge.")] = None,
) -> None:
    """Judge a run's images by other networks, and compare them with photographs."""
    from featmap.cli import console
    from featmap.runs.engine import Execution
    from featmap.validation import judgement
    from featmap.validation.image_statistics import summary_rows
    from featmap.validation.inputs import list_photographs

    plan = judgement.plan_judgement(
        run,
        judges.load(),
        photographs=list_photographs(photographs.photographs, photographs.limit),
        skip_broken=photographs.skip_broken,
        network=network.load(),
        execution=Execution(device, out=out),
    )
    result = console.run_with_progress(lambda watcher: judgement.carry_out(plan, watcher))
    for note in result.notes:
        console.err().print(f"note: {note}")
    for line in console.table_lines(("layer", "of", "measure", "value", "interval", "n"), summary_rows(result.results)):
        console.out().print(line)
    console.out().print(f"result: {plan.folder} (images, transfer and statistics as .csv and .parquet, summary.json)")
