"""`lobule view`: show results, slides and exams in a web browser."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lobule.cli.base import CommandOutput, lobule_command
from lobule.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from lobule.cohort import Cohort
    from lobule.server.library import Library, Source

MOST_PORT = 65535
BUILD = "make viewer"
"""The command that builds the viewer's pages in a checkout."""


@lobule_command(
    "lobule view results",
    "lobule view results other-results --cohort cohort.csv",
    "lobule view bundle --cohort cohort.csv",
)
@click.argument("paths", nargs=-1, required=True, metavar="RESULTS|SLIDE|COHORT|BUNDLE…")
@click.option("--cohort", metavar="MANIFEST", help="Manifest with labels and annotations of the cases.")
@click.option("--slides", metavar="DIR", help="Folder that is searched for images that have moved.")
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    metavar="BUNDLE",
    help="Bundle that produced results; its calibration is shown beside them.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=8080, help="Port; 0 chooses a free one.")
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="Further host name under which the server is called."
)
@click.option("--show-patients", is_flag=True, help="Show the names of patients.")
@click.option("--show-labels", is_flag=True, help="Show label and macro images, which may name patients.")
@click.option("--open", "open_browser", is_flag=True, help="Open the viewer in a browser.")
@click.option(
    "--server", type=click.Choice(["uvicorn", "granian"]), default="uvicorn", help="The web server to use."
)
def command(
    paths: Sequence[str], cohort: str | None, slides: str | None, bundles: Sequence[str], **options: Any
) -> CommandOutput:
    """Show results in a web browser, finished or while the scan is running.

    PATHS are results folders, slides, images, manifests of slides or exams, or bundles, of which the training
    cases in MANIFEST are shown. The server listens on this machine only. If --host names another address, a
    client needs the token in the URL that is printed. Reviews are written beside the results; nothing else
    is.
    """
    require_pages()
    view(open_library(paths, cohort, slides, bundles), **options)
    return CommandOutput({}, "")


def view(
    library: Library,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    allow_host: Sequence[str] = (),
    show_patients: bool = False,
    show_labels: bool = False,
    open_browser: bool = False,
    server: Literal["uvicorn", "granian"] = "uvicorn",
) -> None:
    """Serve the viewer until Ctrl-C; the options are those of the command."""
    try:
        from lobule.server.app import ServerOptions, create_app, new_token
        from lobule.server.gate import LOOPBACK
        from lobule.server.serving import serve
    except ModuleNotFoundError as error:
        raise MissingExtra("view", "lobule view") from error
    token = None if host in LOOPBACK else new_token()
    hosts = LOOPBACK | {name.lower() for name in (host, *allow_host, socket.gethostname())}
    app = create_app(library, ServerOptions(hosts, token, show_patients, show_labels))
    with closing(_listen(host, port)) as listening:
        url = _url(host, listening.getsockname()[1], token)
        click.echo(f"{len(library.entries()):,} cases at {url}", err=True)
        click.echo("Ctrl-C stops the viewer. Research use only, not for diagnosis.", err=True)
        if open_browser:
            click.launch(url)
        serve(app, listening, server)


def require_pages() -> None:
    """Raise an error that names the command that builds the viewer's pages if they are not there."""
    try:
        from lobule.server.app import STATIC, is_built
    except ModuleNotFoundError as error:
        raise MissingExtra("view", "lobule view") from error
    if not is_built():
        raise UsageError(
            "the viewer's pages are not built", subject=STATIC, remedy=f"Build them with: {BUILD}"
        )


def open_library(
    paths: Sequence[str], cohort: str | None, slides: str | None, bundles: Sequence[str] = ()
) -> Library:
    """Open results folders, slides, cohorts and bundles as the sources of the viewer.

    Args:
        paths: Results folders, slides, images, manifests or bundles.
        cohort: Manifest of the cases.
        slides: Folder that is searched for images that have moved.
        bundles: Bundles whose calibration is shown beside the results that they produced.
    """
    from lobule.cohort.manifest import read_cohort
    from lobule.server.library import Library

    if slides is not None and not Path(slides).is_dir():
        raise UsageError("this is not a folder", subject=slides, expected="a folder with slides or exams")
    rows = None if cohort is None else read_cohort(cohort, check_files=False)
    sources = list(_sources(paths, rows))
    calibrations = dict(_calibration(bundle, sources) for bundle in bundles)
    return Library(sources, rows, None if slides is None else Path(slides), calibrations)


def _calibration(path: str, sources: Sequence[Source]) -> tuple[str, Mapping[str, Any]]:
    """Return the fingerprint and the calibration of a bundle that produced some of the results.

    Raises:
        UsageError: No result is of this bundle.
    """
    from lobule.bundles import read_bundle

    bundle = read_bundle(path)
    settings = [source.results.settings for source in sources if source.results is not None]
    fingerprints = {str((one.get("bundle") or {}).get("fingerprint")) for one in settings}
    if bundle.fingerprint not in fingerprints:
        raise UsageError(
            "none of the results was produced by this bundle",
            subject=path,
            expected=f"the fingerprint {' or '.join(one[:12] for one in sorted(fingerprints))}",
            actual=bundle.fingerprint[:12],
        )
    return bundle.fingerprint, bundle.calibration


def _sources(paths: Sequence[str], rows: Cohort | None) -> Iterator[Source]:
    """Yield a source per results folder and bundle, and one for all other paths together."""
    from lobule.bundles import MODEL
    from lobule.cli.info import is_results_url
    from lobule.cohort.manifest import cohort_of_paths
    from lobule.results import local_results, open_results
    from lobule.results.folder import SCAN
    from lobule.server.library import Source

    case_paths = []
    for path in paths:
        if is_results_url(path):
            copy = local_results(path)
            yield Source(copy.name, open_results(copy))
        elif (Path(path) / SCAN).is_file():
            yield Source(Path(path).resolve().name, open_results(path))
        elif (Path(path) / MODEL).is_file():
            yield Source(f"training cases of {Path(path).resolve().name}", cohort=training_cases(path, rows))
        elif not Path(path).exists():
            raise UsageError("there is no such file or folder", subject=path)
        else:
            case_paths.append(path)
    if case_paths:
        opened: Cohort = cohort_of_paths(case_paths)
        yield Source("slides" if len(case_paths) > 1 else Path(case_paths[0]).name, cohort=opened)


def training_cases(bundle: str, rows: Cohort | None) -> Cohort:
    """Return the cases of a cohort that a bundle was trained or validated on.

    Raises:
        UsageError: There is no cohort, or none of its cases was used.
    """
    from lobule.bundles import patient_hash, read_bundle

    loaded = read_bundle(bundle)
    if rows is None:
        raise UsageError(
            "a bundle does not contain the paths of its training cases",
            subject=bundle,
            remedy="Name the manifest it was trained with: --cohort MANIFEST",
        )
    used = {*loaded.provenance.get("train_cases", ()), *loaded.provenance.get("val_cases", ())}
    patients = frozenset(loaded.patients)
    chosen = rows.where(lambda case: case.id in used and patient_hash(case.patient) in patients)
    if not len(chosen):
        raise UsageError(
            "none of the cases was used to train this bundle",
            subject=rows.path,
            expected=f"cases of {bundle}",
        )
    return chosen


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that the URL is known before the server starts."""
    if not 0 <= port <= MOST_PORT:
        raise UsageError(
            f"cannot listen on port {port}", expected=f"a number up to {MOST_PORT:,}; 0 chooses a free port"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}",
            actual=str(error.strerror or error),
            remedy="Use another --port",
        ) from error


def _url(host: str, port: int, token: str | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + ("" if token is None else f"?token={token}")
