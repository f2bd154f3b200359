"""From a finished run to its atlas: one page a layer, an index over several, the reports of interaction runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import quote

from featmap.errors import FeatmapError, StoreError
from featmap.files import digest, hash_file, translate_os_errors, write_atomically
from featmap.mapping import result
from featmap.network.model import Network
from featmap.optimize.responses import Probe
from featmap.report import html, interaction, layer_data
from featmap.report.page import Report
from featmap.runs import integrity, lifecycle
from featmap.runs.manifest import translate_read_errors
from featmap.runs.progress import Silent, Watcher
from featmap.runs.store import Run

FILE_NAME = "atlas.html"


def atlas(
    folder: str | Path,
    *,
    interactions: Sequence[str | Path] = (),
    activation_maps: bool = True,
    network: Network | None = None,
    out: str | Path | None = None,
    watcher: Watcher | None = None,
) -> list[Path]:
    """Make the atlas of a finished run: HTML that opens offline, without Python and without any other file.

    Parameters
    ----------
    folder : of a run of `featmap similarity`, `interact` or `optimize`; the same run gives the same bytes
    interactions : folders of interaction runs whose reports the page shall hold
    activation_maps : run the network once over the images to see where on each its feature fires
    network : that of the run, where its folder does not say how to load it; with other weights it is refused
    out : where the pages go, the run folder if not given

    Returns
    -------
    list of Path
        The page to open, which is the index for a run of several layers, then the pages of the layers.

    Raises
    ------
    FeatmapError
        for a run that is not finished, or of a command that makes no images.
    """
    watcher = watcher or Silent()
    for one in (folder, *interactions):
        _check(Path(one))
    inside = out is None or Path(out).resolve().is_relative_to(Path(folder).resolve())
    with Run.read(Path(folder)).locked() if inside else nullcontext(), translate_read_errors(Path(folder)):
        # read again now that nobody else writes it
        return _atlas(Run.read(Path(folder)), interactions, activation_maps, network, out, watcher)


def _check(folder: Path) -> None:
    """Refuse a run that is not finished or not what was written."""
    if not Run.read(folder).manifest.is_complete:
        raise StoreError(f"run {str(folder)!r} is not finished; its own command goes on with it")
    integrity.require_intact(folder, pages=False)


def _atlas(
    run: Run,
    interactions: Sequence[str | Path],
    activation_maps: bool,
    network: Network | None,
    out: str | Path | None,
    watcher: Watcher,
) -> list[Path]:
    command = str(run.identity.get("command") or "")
    if command == "probe":
        raise StoreError(
            f"run {str(run.folder)!r} is of `featmap probe`, which makes no images; an atlas shows runs of "
            "similarity, maximise or interact"
        )
    brought = [report for other in interactions for report in interaction.build_reports(Path(other))]
    if command.startswith("interact"):
        own = interaction.build_reports(run.folder)
        made = iter([(FILE_NAME, html.render_report_page(own[0].title, str(run.manifest.network), [*own, *brought]))])
    else:
        probe = _probe(run, network) if activation_maps else "left out when this page was made"
        if command == "optimize":
            made = iter(
                [(FILE_NAME, html.render_layer_page(layer_data.build_image_page(run, probe, watcher), brought, None))]
            )
        else:
            made = _of_similarity(run, probe, brought, watcher)
    return _write(run, Path(out) if out is not None else run.folder, made)


def is_current(run: Run) -> bool:
    """Does the atlas in a run folder show the tables that lie there now?"""
    noted = run.manifest.atlas
    if noted.get("of") != _made_of(run):
        return False
    return bool(noted.get("pages")) and run.are_intact(noted["pages"])


def _made_of(run: Run) -> str:
    return digest({"files": run.manifest.files, "interactions": []})


def _write(run: Run, folder: Path, made: Iterator[tuple[str, str]]) -> list[Path]:
    """Write the pages as they are made: those of a whole network need not all fit into memory."""
    names = []
    for name, text in made:
        with translate_os_errors(f"folder {str(folder)!r}"):
            write_atomically(folder / name, partial(Path.write_text, data=text, encoding="utf-8", newline="\n"))
        names.append(name)
    if folder.resolve() == run.folder.resolve():
        run.manifest.atlas = {"of": _made_of(run), "pages": {name: hash_file(folder / name) for name in names}}
        run.save()
    elif folder.resolve().is_relative_to(run.folder.resolve()):
        for name in names:
            path = (folder / name).resolve()
            run.manifest.added[path.relative_to(run.folder.resolve()).as_posix()] = hash_file(path)
        run.save()
    return [folder / name for name in names]


def _probe(run: Run, network: Network | None) -> Probe | str:
    """Return the probe of the run's network, or why there is none."""
    known = run.identity["model"]["sha256"]
    if network is not None and network.sha256 != known:
        raise FeatmapError(
            f"run {str(run.folder)!r} was made with weights of SHA-256 {known[:12]}, not with {network}; "
            "give the run's own --model and --weights, or --no-maps"
        )
    try:
        return Probe(network or lifecycle.network_of(run.folder), layer_data.PROBE_ROWS)
    except FeatmapError as error:
        # the folder's name is the reader's of this line, not of the page
        return str(error).replace(str(run.folder), run.folder.name)


def _of_similarity(run: Run, probe: Probe | str, brought: list[Report], watcher: Watcher) -> Iterator[tuple[str, str]]:
    """Yield each page's place and text: of one layer, or the index and then every layer's."""
    found = result.read_maps(run.folder)
    if len(found) == 1:
        page = layer_data.build_map_page(next(iter(found.values())), run, probe, {}, watcher)
        yield FILE_NAME, html.render_layer_page(page, brought, None)
        return
    hrefs = {layer: f"{quote(one.prefix)}{FILE_NAME}" for layer, one in found.items()}
    elsewhere = {layer: f"../{href}" for layer, href in hrefs.items()}
    listed = {layer: (hrefs[layer], len(one.shown), one.lines()) for layer, one in found.items()}
    table = result.read_layer_table(run.folder)
    if table is None:
        raise StoreError(f"run {str(run.folder)!r} has lost {result.LAYER_TABLE}.parquet; run its command again")
    title = f"{len(found)} layers of {run.identity['model']['name']}"
    yield FILE_NAME, html.render_index_page(title, str(run.manifest.network), listed, table, brought)
    for one in found.values():
        page = layer_data.build_map_page(one, run, probe, elsewhere, watcher)
        yield f"{one.prefix}{FILE_NAME}", html.render_layer_page(page, [], f"../{FILE_NAME}")
