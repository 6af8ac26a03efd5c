"""`lobule view`: show results, slides and exams in a web browser."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, lobule_command
from lobule.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from lobule.cohort import Cohort
    from lobule.server.library import Library

BUILD = "make viewer"
"""The command that builds the viewer's pages in a checkout."""


@lobule_command("lobule view results", "lobule view results other-results --cohort cohort.csv")
@click.argument("paths", nargs=-1, required=True, metavar="RESULTS|SLIDE|COHORT…")
@click.option("--cohort", metavar="MANIFEST", help="Manifest with labels and annotations of the cases.")
@click.option("--slides", metavar="DIR", help="Folder that is searched for images that have moved.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=8080, help="Port; 0 chooses a free one.")
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="Further host name under which the server is called."
)
@click.option("--show-patients", is_flag=True, help="Show the names of patients.")
@click.option("--open", "open_browser", is_flag=True, help="Open the viewer in a browser.")
def command(
    paths: Sequence[str],
    cohort: str | None,
    slides: str | None,
    host: str,
    port: int,
    allow_host: Sequence[str],
    show_patients: bool,
    open_browser: bool,
) -> CommandOutput:
    """Show results in a web browser, finished or while the scan is running.

    PATHS are results folders, slides, images, or manifests of slides or exams. The server listens on this
    machine only. If --host names another address, a client needs the token in the URL that is printed.
    Reviews are written beside the results; nothing else is.
    """
    try:
        import uvicorn

        from lobule.server.app import STATIC, ServerOptions, create_app, is_built, new_token
        from lobule.server.gate import LOOPBACK
    except ModuleNotFoundError as error:
        raise MissingExtra("view", "lobule view") from error
    if not is_built():
        raise UsageError(
            "the viewer's pages are not built", subject=STATIC, remedy=f"Build them with: {BUILD}"
        )
    library = open_library(paths, cohort, slides)
    token = None if host in LOOPBACK else new_token()
    hosts = LOOPBACK | {name.lower() for name in (host, *allow_host, socket.gethostname())}
    app = create_app(library, ServerOptions(hosts, token, show_patients))
    with closing(_listen(host, port)) as listening:
        url = _url(host, listening.getsockname()[1], token)
        click.echo(f"{len(library.entries()):,} cases at {url}", err=True)
        click.echo("Ctrl-C stops the viewer. Research use only, not for diagnosis.", err=True)
        if open_browser:
            click.launch(url)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1,
            server_header=False, date_header=False,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])
    return CommandOutput({}, "")


def open_library(paths: Sequence[str], cohort: str | None, slides: str | None) -> Library:
    """Open results folders, slides and cohorts as the sources of the viewer."""
    from lobule.cohort.manifest import read_cohort
    from lobule.server.library import Library

    if slides is not None and not Path(slides).is_dir():
        raise UsageError("this is not a folder", subject=slides, expected="a folder with slides or exams")
    rows = None if cohort is None else read_cohort(cohort, check_files=False)
    return Library(list(_sources(paths)), rows, None if slides is None else Path(slides))


def _sources(paths: Sequence[str]) -> Iterator[Any]:
    """Yield a source per results folder, and one for all other paths together."""
    from lobule.cohort.manifest import cohort_of_paths
    from lobule.results import open_results
    from lobule.results.folder import SCAN
    from lobule.server.library import Source

    case_paths = []
    for path in paths:
        if (Path(path) / SCAN).is_file():
            yield Source(Path(path).resolve().name, open_results(path))
        elif not Path(path).exists():
            raise UsageError("there is no such file or folder", subject=path)
        else:
            case_paths.append(path)
    if case_paths:
        opened: Cohort = cohort_of_paths(case_paths)
        yield Source("slides" if len(case_paths) > 1 else Path(case_paths[0]).name, cohort=opened)


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that the URL is known before the server starts."""
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
