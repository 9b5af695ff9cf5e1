"""What every command line here shares: --version, and wrong input as one line with exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from pretrain import __version__
from pretrain.errors import EXIT_CRASHED, EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT, UserError

PATIENCE = 30.0
"""Seconds that `leave` waits for threads."""


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps examples as they are written and says what is wrong in one line.

    Subparsers are of this class too; only a parser with `version=True` takes --version.
    """

    def __init__(self, *, version: bool = False, **kwargs: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs})
        if version:
            self.add_argument("--version", action="version", version=f"kilolayer {__version__}")

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_WRONG_INPUT, f"error: {message}; see {self.prog} --help\n")


def natural(text: str) -> int:
    """A whole number from 0 on, as an argument's type."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """A whole number from 1 on, as an argument's type."""
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    number = int(text)  # argparse turns the ValueError into its own line
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return number


def run(action: Callable[[], int | None], speaks: bool = True) -> int:
    """Run a command; returns the exit code.

    Wrong input ends with one line and 2; a full disk or a folder that may not be written to with one line and 1.

    Args:
        action: returns an exit code, or None for success.
        speaks: whether to print that line; of many ranks, one should.
    """
    problem: Exception
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has not all characters, as for stderr
    try:
        done = action()
        sys.stdout.flush()
        return done or EXIT_DONE
    except UserError as error:
        problem, code, speaks = error, error.exit_code, speaks or error.of_this_rank
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for the flush at exit)
        return EXIT_DONE
    except KeyboardInterrupt:
        problem, code = Exception("interrupted"), EXIT_INTERRUPTED
    except OSError as error:
        problem, code, speaks = error, EXIT_CRASHED, True  # of this machine alone, so each says its own
    if speaks:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    return code


def say(line: str) -> None:
    """A line on standard error. Where that is a closed terminal, or a file on a full disk, nothing is said."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def leave_with(main: Callable[[], int]) -> NoReturn:
    """`leave` with what `main` returns, or raises: an unknown error with its trace and EXIT_CRASHED."""
    try:
        code = main()
    except SystemExit as end:  # argparse
        code = end.code if isinstance(end.code, int) else EXIT_DONE if end.code is None else EXIT_CRASHED
    except BaseException as error:
        traceback.print_exc()
        code = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_CRASHED
    leave(code)


def leave(code: int) -> NoReturn:
    """End a process that was one of a process group: wait for its threads, write out what is buffered, no more.

    What must be complete has been waited for by whoever began it; a thread that nobody ended is given up.

    The interpreter's own finalisation may abort it: gloo's threads hold tensors for a moment after a collective, and
    letting one go needs an interpreter (pytorch/pytorch#190489). A run that is done must not end by a signal.
    """
    end = time.monotonic() + PATIENCE
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, end - time.monotonic()))
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
