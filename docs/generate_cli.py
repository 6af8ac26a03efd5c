"""Write docs/cli.md from the help of the commands; with --check, only check that it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lobule.cli import ABOUT, COMMANDS
from lobule.cli.base import LazyGroup

PAGE = Path(__file__).parent / "cli.md"

HEAD = """# Commands

This page is generated from `--help` by `docs/generate_cli.py`; change the help, not the page.

Every command has the options `--json`, which prints JSON, and `--debug`, which shows tracebacks. Commands and
options may be written with hyphens or underscores. The exit status is 0 for success, 1 if some cases failed,
2 for invalid use and 130 after an interruption. Progress is shown only on a terminal.
"""


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print("docs/cli.md is out of date: run docs/generate_cli.py", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    root = LazyGroup("lobule", COMMANDS, help=ABOUT, version=True)
    return HEAD + "".join(section(path, help_text) for path, help_text in walk(root, "lobule", None))


def walk(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """Yield the path and the help text of a command and of all its subcommands."""
    settings = {**command.context_settings, "terminal_width": 96, "max_content_width": 96}
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent, **settings)
    yield path, command.get_help(context)
    if isinstance(command, LazyGroup):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from walk(below, f"{path} {name}", context)


def section(path: str, help_text: str) -> str:
    return f"\n## {path}\n\n```text\n{help_text.rstrip()}\n```\n"


if __name__ == "__main__":
    sys.exit(main())
