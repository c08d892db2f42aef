"""Console output shared by all commands: one-line user errors, and progress with rate and ETA."""

import atexit
import difflib
import errno
import importlib.util
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from store.errors import DamagedError, UserError

INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT)  # disks
WORD = re.compile(r"^no such command '(.*?)'")
Misuse: type[Exception] = typer.BadParameter.__mro__[1]  # typer shows its base class, of all such errors, to nobody
console = Console(highlight=False, soft_wrap=True)


def make_app(help_text: str, cls: type[TyperGroup] = TyperGroup, completion: bool = False) -> typer.Typer:
    """A typer application with the options that all commands share."""
    return typer.Typer(
        help=help_text,
        cls=cls,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def run(app: Callable[[], object], stopped: str = "stopped", extra: str | None = None) -> None:
    """Run an application; a mistake of the user prints one line and exits with 2, Ctrl-C `stopped` and exits with 130.

    Args:
        app: the application.
        stopped: the line to print on Ctrl-C.
        extra: the pip extra that provides the application's optional packages, named if one is missing.
    """
    if "OMP_WAIT_POLICY" not in os.environ:  # torch's idle threads would spin and take each other's cores
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for file names that the terminal cannot show
    if isinstance(app, typer.Typer):
        app = partial(app, standalone_mode=False, prog_name=sys.argv[0] if sys.argv[0].startswith("avllm") else None)
    try:
        status = app()
        if isinstance(status, int) and status:
            sys.exit(status)
    except UserError as error:
        sys.exit(_say(f"error: {line_of(error)}", 2))
    except Misuse as error:
        sys.exit(_say(_misuse_line(error), 2))
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        where = f"{error.filename2 or error.filename}: " if error.filename is not None else ""
        sys.exit(_say(f"error: {where}{error.strerror}", 2))
    except ImportError as error:
        package = _missing(error)
        if extra is None or package is None:
            raise
        sys.exit(_say(f"error: the package {package} is missing: pip install 'avllm[{extra}]'", 2))
    except (KeyboardInterrupt, typer.Abort, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:  # typer turns Ctrl-C into this exit code
            raise
        _say(stopped, INTERRUPTED)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads of libraries that were in the middle of something would abort


def _misuse_line(error: Any) -> str:
    """What is wrong with the words of a command, in one line; the help of a command that was given none, as it is."""
    message, context = error.format_message(), error.ctx
    if "\n" in message:
        return str(message)
    message, hints = f"{message[:1].lower()}{message[1:].rstrip('.')}", []
    message = message.replace("Value error, ", "").replace("Input should be", "expected").partition(", unable to")[0]
    if not context:
        return f"error: {message}"
    command, path = context.command, context.command_path
    option, parameter = getattr(error, "option_name", ""), getattr(error, "param", None)
    if option and message.startswith("no such option"):
        message = f"no such option: {option}"
        options = [name for each in command.params for name in (*each.opts, *each.secondary_opts) if name[:2] == "--"]
        if near := difflib.get_close_matches(option, options):
            hints.append(f"did you mean {' or '.join(near)}")
        elif any(each.name == "overrides" for each in command.params):
            hints.append(f"settings are given as KEY=VALUE, such as {option.lstrip('-').replace('-', '_')}=...")
    elif isinstance(command, TyperGroup) and (word := WORD.search(message)):
        names = [n for n in command.list_commands(context) if not getattr(command.get_command(context, n), "hidden", 0)]
        near = difflib.get_close_matches(word[1], names, cutoff=0.7)
        message = f"no such command '{word[1]}'"
        hints.append(f"did you mean {' or '.join(near)}" if near else f"it has: {', '.join(names)}")
    elif parameter and parameter.help and message.startswith("missing"):
        message += f" ({parameter.help.rstrip('.')})"
    return f"error: {path}: {'; '.join([message, *hints])}; more: {path} --help"


def _missing(error: BaseException | None) -> str | None:
    """The missing package that caused an error, or None if the cause is something else."""
    package = None
    while error:  # some packages wrap the error in their own
        name = error.name if isinstance(error, ModuleNotFoundError) else None
        package = name.partition(".")[0] if name else package
        error = error.__cause__ or error.__context__
    try:
        return package if package and importlib.util.find_spec(package) is None else None
    except ModuleNotFoundError:
        return package


def make_table(*heads: str) -> Table:
    """A table that wraps wide cells instead of cutting them, so that names stay complete."""
    table = Table(*heads)
    for column in table.columns:
        column.overflow = "fold"
    return table


def size_text(count: int) -> str:
    """A number of bytes in kB, MB or GB: 0.1 to 100 of the unit, where that can be."""
    size, units = count / 1000, ["kB", "MB", "GB"]
    while size >= 100 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.1f} {units[0]}"


def line_of(error: UserError) -> str:
    """The one-line message of an error, with the repair command if there is one."""
    remedy = isinstance(error, DamagedError) and error.remedy
    return f"{error}; mend it: {remedy}" if remedy else str(error)


def say_json(value: object) -> None:
    """Print one JSON document. Print nothing else on stdout, so that scripts can parse it."""
    print(json.dumps(value, indent=1))


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


class Meter:
    """Progress of a long job: a bar on a terminal, else a line every few seconds (for a log).

    Args:
        what: the job.
        total: its size.
        unit: of the size, in the plural, such as `steps`.
        before: how much of it was done earlier; rate and ETA are of the rest.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, what: str, total: int, unit: str, before: int = 0) -> None:
        self.what, self.total, self.unit, self._before = what, total, unit, before
        self.done = 0
        self._note, self._told = "", 0
        self._began = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, completed=before, note="")

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
        if not console.is_terminal and self.done != self._told:
            self._line()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self._began, 1e-9)

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more units as done, and show `note` beside the bar."""
        self.done += count
        self._note = note
        self._bar.update(self._task, advance=count, note=f"{self.rate:.2f} {self.unit}/s {note}")
        if not console.is_terminal and time.monotonic() - self._last_line > self.SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last_line, self._told = time.monotonic(), self.done
        done = self._before + self.done
        when = f"{time.monotonic() - self._began:.0f} s" if done >= self.total else "ETA ?"
        if self.done and done < self.total:
            when = f"ETA {(self.total - done) / self.rate:.0f} s"
        parts = [f"{self.what}: {done}/{self.total} {self.unit}", f"{self.rate:.2f}/s", when, self._note]
        console.print(", ".join(filter(None, parts)))
