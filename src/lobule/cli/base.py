"""Code that all commands share: lazy loading, `--json`, `--debug`, one-line errors, progress, exit status."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from lobule.errors import LobuleError, UsageError


@dataclass(frozen=True)
class CommandOutput:
    """The output of a command: data for `--json`, text for people, and the number of failed cases."""

    data: Mapping[str, Any]
    text: str
    failed: int = 0


class Command(click.Command):
    """A command that returns a `CommandOutput`. Its help ends with examples, which the tests run."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.examples = tuple(examples)
        self.params.append(
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON instead of text.")
        )
        self.params.append(click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."))

    def invoke(self, ctx: click.Context) -> int:
        ctx.obj.debug = ctx.params.pop("debug")
        ctx.obj.as_json = ctx.params.pop("as_json")
        output: CommandOutput = super().invoke(ctx)
        text = output.text
        if ctx.obj.as_json:
            text = json.dumps(output.data, indent=1, ensure_ascii=False, allow_nan=False)
        try:
            if text:
                click.echo(text)
        except BrokenPipeError:
            # The command has finished, so the exit status still reports its outcome.
            _discard_output()
        return 1 if output.failed else 0

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
            for example in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def lobule_command(*examples: str) -> Callable[[Callable[..., CommandOutput]], Command]:
    """Return a decorator that turns a function into a command. Its docstring becomes the help text.

    Args:
        examples: Command lines that the help shows.
    """

    def decorate(function: Callable[..., CommandOutput]) -> Command:
        command = click.command(cls=Command, examples=examples)(function)
        assert isinstance(command, Command)
        return command

    return decorate


class LazyGroup(click.Group):
    """A group of commands. A command is imported only when it is called, not to list the commands.

    Args:
        name: Name of the group.
        entries: For each command, its location as `module:attribute` and one line of help.
        help: Help text of the group.
        version: Whether the group has the option `--version`.
    """

    def __init__(
        self, name: str, entries: Mapping[str, tuple[str, str]], *, help: str, version: bool = False
    ) -> None:
        super().__init__(name, help=help, no_args_is_help=True, context_settings=_CONTEXT)
        self.entries = entries
        if version:
            self.params.append(_version_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        names = {name.replace("_", "-"): name for name in self.entries}
        name = names.get(cmd_name.replace("_", "-"))
        if name is None:
            return None
        module, _, attribute = self.entries[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        command.name = name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.entries, 1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(self.entries)}."
            raise click.UsageError(f"There is no command '{args[0]}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.entries.items()])


_CONTEXT: dict[str, Any] = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "show_default": True,
}
"""Commands and options may be written with hyphens or underscores. Help texts show defaults."""


def _version_option() -> click.Option:
    def print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            from lobule import __version__

            click.echo(f"lobule {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=print_version,
        help="Show the version.",
    )


# -- running ------------------------------------------------------------------------------------------------


@dataclass
class GlobalOptions:
    """The options that every command has."""

    debug: bool = False
    as_json: bool = False


def run(root: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. An error is printed as one line on stderr."""
    argument_list = list(sys.argv[1:] if arguments is None else arguments)
    global_options = GlobalOptions(debug="--debug" in argument_list, as_json="--json" in argument_list)
    try:
        status = root.main(argument_list, prog_name="lobule", standalone_mode=False, obj=global_options)
        sys.stdout.flush()
        return int(status or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), global_options, 2, context=getattr(error, "ctx", None))
    except (click.Abort, KeyboardInterrupt):
        return _fail("Interrupted.", global_options, 130)
    except BrokenPipeError:
        # The reader of the output has closed the pipe; Python must not report this at exit.
        _discard_output()
        return 141  # The status of a program that SIGPIPE ended.
    except LobuleError as error:
        if global_options.debug:
            raise
        return _fail(str(error), global_options, 2 if isinstance(error, UsageError) else 1, error)
    except Exception as error:
        if global_options.debug:
            raise
        return _fail(_describe_unexpected_error(error), global_options, 1, error)


def _discard_output() -> None:
    """Redirect stdout to the null device, so that Python reports no error when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe_unexpected_error(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror or error}."
    if isinstance(error, MemoryError):
        return "Out of memory. Reduce --max-ram or --batch, or process fewer cases at a time."
    return f"Unexpected {type(error).__name__}: {error}. This is a bug in Lobule; --debug shows where."


ERROR_KEYS = {
    "what": "problem", "subject": "subject", "expected": "expected", "found": "actual", "remedy": "remedy",
}  # fmt: skip
"""Keys of an error in `--json` output, and the attributes of `LobuleError` that they show. Scripts rely on
the keys."""


def _fail(
    message: str,
    global_options: GlobalOptions,
    status: int,
    error: Exception | None = None,
    context: click.Context | None = None,
) -> int:
    """Print an error and return the exit status.

    Args:
        message: The error in one line.
        global_options: Decide whether the error is also printed as JSON.
        status: The exit status.
        error: The exception, for JSON output.
        context: The click command that was used wrongly; the message refers to its help.
    """
    with suppress(BrokenPipeError):
        if global_options.as_json and status != 130:
            fields = {"kind": type(error).__name__ if error else "UsageError", "message": message}
            values = {key: getattr(error, attribute, None) for key, attribute in ERROR_KEYS.items()}
            fields |= {key: value for key, value in values.items() if value is not None}
            click.echo(json.dumps({"error": fields}, indent=1, ensure_ascii=False))
        if context is not None:
            message += f" See `{context.command_path} --help`."
        # Status 130 is an interruption by the user, which is not shown as an error.
        is_plain = "NO_COLOR" in os.environ or status == 130
        click.echo(message if is_plain else click.style(message, fg="red"), err=True)
    return status


# -- printing -----------------------------------------------------------------------------------------------


def format_fields(pairs: Sequence[tuple[str, str]]) -> str:
    """Format names and values in two columns; the lines of a value are aligned in its column."""
    width = max((len(name) for name, _ in pairs), default=0)
    indent = "\n" + " " * (width + 2)
    return "\n".join(f"{name:<{width}}  {value.replace(chr(10), indent)}".rstrip() for name, value in pairs)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format an aligned table; a column is right-aligned if all its cells begin with a digit."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    is_right_aligned = [bool(rows) and all(row[i][:1].isdigit() for row in rows) for i in range(len(header))]

    def format_row(cells: Sequence[str]) -> str:
        columns = zip(cells, widths, is_right_aligned, strict=True)
        return "  ".join(
            cell.rjust(w) if is_right else cell.ljust(w) for cell, w, is_right in columns
        ).rstrip()

    return "\n".join([click.style(format_row(header), dim=True), *map(format_row, rows)])


def note(message: str) -> None:
    """Print a message for people on stderr, only if that is a terminal."""
    if sys.stderr.isatty():
        click.echo(click.style(message, dim=True), err=True)


@contextmanager
def progress(
    description: str, total: float | None = None, unit: str = ""
) -> Iterator[Callable[[float], None]]:
    """Show a progress bar on stderr if that is a terminal.

    Yields:
        A function `advance(amount)` that adds to the completed amount.
    """
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    speed_column = TextColumn("{task.fields[rate]}")
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        speed_column,
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )
    with display:
        task_id = display.add_task(description, total=total, rate="")

        def advance(amount: float) -> None:
            speed = display.tasks[0].speed
            display.update(task_id, advance=amount, rate=f"{speed:.3g} {unit}/s" if speed else "")

        yield advance
