"""Where a command ends: whatever happens in it becomes one line and an exit status."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, NoReturn

import typer

from featmap.errors import FeatmapError, IncompleteError

LONGEST = 1000
INTERRUPTED = "interrupted; what is finished is kept, and the same command goes on from here"


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line; errors end in one line and a status.

    The status is 2 for bad input, 3 for a run that left work units out, 130 for Ctrl-C, 1 for a fault of ours.
    """
    limit_thread_spinning()
    if arguments is None:  # a process of its own: what lives at its end need not be searched for garbage once more
        atexit.register(gc.freeze)
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    status: Any = 0
    try:
        status = typer.main.get_command(app).main(args=given, prog_name=name, standalone_mode=False)
    except KeyboardInterrupt:
        _fail(name, INTERRUPTED, 130, debug)
    except IncompleteError as error:
        _fail(name, str(error), 3, debug)
    except FeatmapError as error:
        _fail(name, str(error), 2, debug)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever happened ends in one line
        message, status = _explain(error, name)
        _fail(name, message, status, debug)
    if status == 130:  # some versions of typer answer Ctrl-C themselves
        print(f"{name}: {INTERRUPTED}", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


def _explain(error: Exception, name: str) -> tuple[str, int]:
    """Return one line and the exit status for an error that is not one of ours."""
    if type(error).__name__ == "Abort":
        return INTERRUPTED, 130
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # what typer raises for arguments
        hint = getattr(getattr(error, "ctx", None), "command_path", name)
        return f"{' '.join(error.format_message().split())} (see {hint} --help)", 2
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, MemoryError) or "allocate memory" in text or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({text[:120]}); give fewer --rows or a smaller --size", 2
    if isinstance(error, OSError) and error.errno and error.filename:  # the user's disk, folders and names
        return f"{str(error.filename)[:160]!r}: {error.strerror}; give another path, or mend this one", 2
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:80]!r} holds characters that cannot be written; give another name", 2
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)", 1


def _fail(name: str, message: str, status: int, debug: bool) -> None:
    if debug:
        raise
    line = " ".join(message.split())
    if len(line) > LONGEST:  # what was given may be as long as a command line allows
        line = f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"
    print(f"{name}: {line}", file=sys.stderr)
    sys.exit(status)


SPIN_COUNT = "10000"


def limit_thread_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads spin for some microseconds and then sleep; a setting of the user's own comes first.

    By default they spin for milliseconds: where anything else runs, that makes a descent two to four times slower.
    Sleeping at once costs a call of the system at each of a step's several hundred meetings. Other OpenMP libraries
    than GNU's know no number, and sleep.
    """
    if "OMP_WAIT_POLICY" in environment or "GOMP_SPINCOUNT" in environment:
        return
    if sys.platform == "linux":
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
    else:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
