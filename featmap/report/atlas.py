"""Write the atlas of a finished run: a page for each layer, an index of several, reports of interaction runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import quote

from featmap.errors import FeatmapError, StoreError
from featmap.files import digest, hash_file, translate_os_errors, write_atomically
from featmap.mapping import result
from featmap.mapping.result import SimilarityMap
from featmap.mapping.view import PHOTOGRAPHS
from featmap.network.model import Network
from featmap.optimize.responses import Probe
from featmap.report import html, interaction, layer_data
from featmap.report.examples import ExamplePhotographs
from featmap.report.map_data import limit_shown
from featmap.report.page import LayerPage, Report
from featmap.runs import integrity, lifecycle
from featmap.runs.manifest import MAXIMISE, translate_read_errors
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
    embed_photographs: bool = False,
    watcher: Watcher | None = None,
) -> list[Path]:
    """Write the atlas of a finished run: HTML pages that open offline.

    A page needs neither Python nor other files. The same run gives the same bytes. Of a run with photographs, the page
    of a layer shows both maps; of a run whose only stimuli are photographs, its only one. Of a layer with more than
    2,500 features shown, a page has 2,500, evenly spaced by number, and says so.

    Parameters
    ----------
    folder : path
        Folder of a finished run of `similarity`, `interact` or `maximise`.
    interactions : sequence of path, optional
        Folders of interaction runs whose reports are included.
    activation_maps : bool, default True
        Run the network once over the images to show where on its image each feature fires.
    network : Network, optional
        Network of the run, where its folder does not say how to load it. Its weights must be those of the run.
    out : path, optional
        Folder of the pages. None takes the run folder.
    embed_photographs : bool, default False
        Show the dataset examples of a map made with photographs: parts of them, with their file names and links. They
        are left out by default, because pages are shared.
    watcher : Watcher, optional
        Receives the progress.

    Returns
    -------
    list of Path
        The page to open, which is the index for a run of several layers, then the pages of the layers.

    Raises
    ------
    FeatmapError
        If a run is not finished or damaged, the command of the run makes no images, the network has other weights, or
        there are no photographs to embed, or they have changed.
    """
    watcher = watcher or Silent()
    for path in (folder, *interactions):
        _check(Path(path))
    inside = out is None or Path(out).resolve().is_relative_to(Path(folder).resolve())
    with Run.read(Path(folder)).locked() if inside else nullcontext(), translate_read_errors(Path(folder)):
        run = Run.read(Path(folder))  # read again: another process may have written before the lock was taken
        place = Path(out) if out is not None else run.folder
        photographs = ExamplePhotographs.open(run, place) if embed_photographs else None
        pages = _render_pages(run, interactions, activation_maps, network, photographs, watcher)
        return _write(run, place, pages, embed_photographs)


def _check(folder: Path) -> None:
    """Check that a run is finished and that its files have the checksums of the manifest."""
    integrity.read_finished(folder)
    integrity.require_intact(folder, pages=False)


def _render_pages(
    run: Run,
    interactions: Sequence[str | Path],
    activation_maps: bool,
    network: Network | None,
    photographs: ExamplePhotographs | None,
    watcher: Watcher,
) -> Iterator[tuple[str, str]]:
    """Return an iterator over the pages of a run: path in the folder, and HTML."""
    command = str(run.identity.get("command") or "")
    if command == "probe":
        raise StoreError(
            f"run {str(run.folder)!r} is a run of `featmap probe`, which makes no images; give a run of similarity, "
            "maximise or interact"
        )
    included = [report for folder in interactions for report in interaction.build_reports(Path(folder))]
    if command.startswith("interact"):
        own = interaction.build_reports(run.folder)
        text = html.render_report_page(own[0].title, str(run.manifest.network), [*own, *included])
        return iter([(FILE_NAME, text)])
    alone = run.identity.get("stimuli") == PHOTOGRAPHS
    probe = _open_probe(run, network) if activation_maps and not alone else "left out when this page was made"
    if command == MAXIMISE:
        page = layer_data.build_image_page(run, probe, watcher)
        return iter([(FILE_NAME, html.render_layer_page(page, included, None))])
    return _render_similarity(run, probe, photographs, included, watcher)


def is_current(run: Run, embed_photographs: bool = False) -> bool:
    """Check whether the atlas in a run folder shows its present tables.

    Parameters
    ----------
    run : Run
        Run folder.
    embed_photographs : bool, default False
        Whether it is to embed photographs.

    Returns
    -------
    bool
        False if there is no atlas, a page is damaged, or it embeds photographs and should not, or the reverse.
    """
    recorded = run.manifest.atlas
    if recorded.get("of") != _source_digest(run) or recorded.get("photographs", False) != embed_photographs:
        return False
    return bool(recorded.get("pages")) and run.are_intact(recorded["pages"])


def _source_digest(run: Run) -> str:
    """Return a digest of the files that the atlas of a run is made from."""
    # the empty entry is part of the digests that are stored in older runs
    return digest({"files": run.manifest.files, "interactions": []})


def _write(run: Run, folder: Path, pages: Iterator[tuple[str, str]], embeds: bool) -> list[Path]:
    """Write each page before the next one is rendered: those of a whole network need not fit into memory together."""
    names = []
    for name, text in pages:
        with translate_os_errors(f"folder {str(folder)!r}"):
            write_atomically(folder / name, partial(Path.write_text, data=text, encoding="utf-8", newline="\n"))
        names.append(name)
    if folder.resolve() == run.folder.resolve():
        pages_written = {name: hash_file(folder / name) for name in names}
        run.manifest.atlas = {"of": _source_digest(run), "pages": pages_written}
        run.manifest.atlas |= {"photographs": True} if embeds else {}
        run.save()
    elif folder.resolve().is_relative_to(run.folder.resolve()):
        for name in names:
            path = (folder / name).resolve()
            run.manifest.added[path.relative_to(run.folder.resolve()).as_posix()] = hash_file(path)
        run.save()
    return [folder / name for name in names]


def _open_probe(run: Run, network: Network | None) -> Probe | str:
    """Return the probe of the run's network, or the reason why there is none."""
    expected = run.identity["model"]["sha256"]
    if network is not None and network.sha256 != expected:
        raise FeatmapError(
            f"run {str(run.folder)!r} was made with weights of SHA-256 {expected[:12]}, not with {network}; "
            "give the run's own network and weights, or leave out the activation maps"
        )
    try:
        loaded = lifecycle.network_of(run.folder) if network is None else network
        return Probe(lifecycle.with_run_directions(loaded, run.folder), layer_data.PROBE_ROWS)
    except FeatmapError as error:
        # a page must not depend on the path of its run, nor show it
        return str(error).replace(str(run.folder), run.folder.name)


def _render_similarity(
    run: Run, probe: Probe | str, photographs: ExamplePhotographs | None, reports: list[Report], watcher: Watcher
) -> Iterator[tuple[str, str]]:
    """Yield the pages of a similarity run: that of its layer, or the index and those of all layers."""
    maps = result.read_maps(run.folder)

    def build(layer_map: SimilarityMap, links: dict[str, str]) -> LayerPage:
        one = limit_shown(layer_map)
        if not one.has_images:
            return layer_data.build_photograph_page(one, run, photographs, watcher)
        return layer_data.build_map_page(one, run, probe, photographs, links, watcher)

    if len(maps) == 1:
        yield FILE_NAME, html.render_layer_page(build(next(iter(maps.values())), {}), reports, None)
        return
    links = {layer: f"{quote(one.prefix)}{FILE_NAME}" for layer, one in maps.items()}
    links_from_layers = {layer: f"../{link}" for layer, link in links.items()}
    entries = {layer: (links[layer], len(one.shown), one.lines()) for layer, one in maps.items()}
    table = result.read_layer_table(run.folder)
    if table is None and any(one.has_images for one in maps.values()):
        raise StoreError(f"run {str(run.folder)!r} has lost {result.LAYER_TABLE}.parquet; run its command again")
    title = f"{len(maps)} layers of {run.identity['model']['name']}"
    yield FILE_NAME, html.render_index_page(title, str(run.manifest.network), entries, table, reports)
    for one in maps.values():
        page = build(one, links_from_layers)
        yield f"{one.prefix}{FILE_NAME}", html.render_layer_page(page, [], f"../{FILE_NAME}")
