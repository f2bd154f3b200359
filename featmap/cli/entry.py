"""Run a command line and turn any exception into a one-line message and an exit status."""

from __future__ import annotations

import atexit
import gc
import io
import os
import re
import sys
from collections.abc import MutableMapping, Sequence
from functools import cache
from typing import Any, NoReturn

import typer

from featmap.errors import FeatmapError, IncompleteError, InputError

MAX_LENGTH = 1000
"""Characters of a message; longer ones are cut in the middle."""
INTERRUPTED = "interrupted; finished work is stored, and the same command resumes it"


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit; an error becomes one line and an exit status.

    The status is 0 for success, 2 for wrong input, 3 for a run that left work units out, 130 for Ctrl-C and 1 for a
    bug. With ``--debug`` anywhere on the line the exception itself is raised.

    Parameters
    ----------
    app : typer.Typer
        The commands.
    name : str
        Name of the program, which begins every message.
    arguments : sequence of str, optional
        Words of the command line. None takes those of the process.
    """
    limit_thread_spinning()
    if arguments is None:  # the process ends with the command: exempt its objects from a last garbage collection
        atexit.register(_skip_last_collection)
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    status: Any = 0
    try:
        status = _build_command(app).main(args=words, prog_name=name, standalone_mode=False)
    except KeyboardInterrupt:
        _fail(name, INTERRUPTED, 130, debug)
    except IncompleteError as error:
        _fail(name, str(error), 3, debug)
    except InputError as error:
        _fail(name, name_option(error.message, words), 2, debug, error.example)
    except FeatmapError as error:
        _fail(name, name_option(str(error), words), 2, debug)
    except Exception as error:  # noqa: BLE001 - the outermost boundary: no exception may pass it
        message, status = _explain(error, name)
        _fail(name, message, status, debug)
    if status == 130:  # some versions of typer handle Ctrl-C themselves
        print(f"{name}: {INTERRUPTED}", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


@cache
def _build_command(app: typer.Typer) -> Any:
    """Build the parser of a command line, once in a process: hundreds of options take a while."""
    return typer.main.get_command(app)


def _skip_last_collection() -> None:
    """Exempt all objects from the garbage collection at the end of the process, which takes a while.

    Where torch's compiler has been loaded they are collected: nanobind lists what is left of Triton's, in 30 lines.
    """
    if "triton" not in sys.modules:
        gc.freeze()


def name_option(message: str, words: Sequence[str]) -> str:
    """Replace the setting that a message begins with by the option that set it.

    The library knows settings, not options: its message ``size 0: an image has at least 1 pixel`` becomes
    ``--size 0: an image has at least 1 pixel`` where ``--size`` is on the command line. A setting that came from
    elsewhere, such as a recipe, keeps its name.

    Parameters
    ----------
    message : str
        Message of a `FeatmapError`.
    words : sequence of str
        Words of the command line.

    Returns
    -------
    str
        The message with the option, or the unchanged message.
    """
    for word in words:
        option = word.partition("=")[0]
        setting = option.removeprefix("--").replace("-", " ")
        if option.startswith("--") and setting and re.match(rf"{re.escape(setting)} ", message):
            message = option + message[len(setting) :]
            break
    return name_recommended(message)


def name_recommended(text: str) -> str:
    """Replace the settings that a message or note recommends by their options.

    Parameters
    ----------
    text : str
        Text with settings in brackets, such as ``(skip_broken)``.

    Returns
    -------
    str
        The text with options, such as ``(--skip-broken)``.
    """
    return re.sub(r"\((skip_broken|allow_stochastic|input_size)\)", lambda m: f"(--{m[1].replace('_', '-')})", text)


def _explain(error: Exception, name: str) -> tuple[str, int]:
    """Compose the message and the exit status for an error that is not a `FeatmapError`."""
    if type(error).__name__ == "Abort":
        return INTERRUPTED, 130
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own errors about arguments
        hint = getattr(getattr(error, "ctx", None), "command_path", name)
        return f"{' '.join(error.format_message().split())} (see {hint} --help)", 2
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, MemoryError) or "allocate memory" in text or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({text[:120]}); give fewer --rows or a smaller --size", 2
    if isinstance(error, OSError) and error.errno and error.filename:  # a path of the user's
        return f"{str(error.filename)[:160]!r}: {error.strerror}; give another path, or repair this one", 2
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:80]!r} contains characters that cannot be written; give another name", 2
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)", 1


def _fail(name: str, message: str, status: int, debug: bool, example: str = "") -> None:
    """Print the message in one line, and an example below it, and exit; or raise the current exception again."""
    if debug:
        raise
    line = " ".join(message.split())
    if len(line) > MAX_LENGTH:  # it may quote a value as long as a command line allows
        line = f"{line[: MAX_LENGTH // 2]} [...] {line[-MAX_LENGTH // 2 :]}"
    print(f"{name}: {line}", *([example] if example else []), sep="\n", file=sys.stderr)
    sys.exit(status)


SPIN_COUNT = "10000"
"""Iterations that a waiting thread spins for before it sleeps: some microseconds."""


def limit_thread_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting OpenMP threads spin for some microseconds only, then sleep.

    By default they spin for milliseconds: where anything else runs on the machine, this makes a descent two to four
    times slower. Sleeping at once instead costs a system call at each of a step's several hundred synchronisations.
    A setting of the user's own is kept. OpenMP libraries other than GNU's take no count; they are set to sleep.

    Parameters
    ----------
    environment : mutable mapping, default os.environ
        Environment variables, which torch reads when it is loaded.
    """
    if "OMP_WAIT_POLICY" in environment or "GOMP_SPINCOUNT" in environment:
        return
    if sys.platform == "linux":
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
    else:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
