"""Arguments and standard streams, for all commands."""

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from sweep.utils import gc_control
from sweep.utils.errors import DISK_FULL, ConfigError, SweepError, one_line
from sweep.utils.terminal import SafeRecord, complain

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def run_command(
    parser: "Parser",
    run: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None,
    unreadable: str = "study",
) -> int:
    """Read a command line and run the command. Each error becomes one line on standard error.

    Args:
        parser: the command's parser.
        run: the command. It returns the exit status.
        arguments: by default those of the process.
        unreadable: the key to name if the system refuses to read or write a file.

    Returns:
        The exit status: what `run` returns, that of a SweepError, 2 for an OSError, or 130 after Ctrl-C.
    """
    secure_streams()
    gc_control.pause()
    try:
        check_command_line(sys.argv[1:] if arguments is None else arguments)
        given = parser.parse_args(arguments)
        return run(given)
    except SweepError as error:
        complain(f"error: {error}")
        return error.exit_status
    except OSError as error:
        complain(f"error: {unreadable}: {_file_problem(error)}")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        gc_control.resume()


def _file_problem(error: OSError) -> str:
    """Return the problem of a file that the system refuses. Only a full or read-only disk says that it is a write."""
    if error.errno in DISK_FULL:
        return f"cannot be written ({one_line(error)}); make room, and give the command again"
    return f"cannot be {'written' if error.errno == errno.EROFS else 'read or written'} ({one_line(error)})"


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError for invalid arguments, so that the error is one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError("command line", f"{one_line(ValueError(message))}; see --help")


def hydra_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command as Hydra parses them. Raise ConfigError if they are invalid."""
    from hydra._internal.utils import get_args_parser

    return Parser(add_help=False, parents=[get_args_parser()]).parse_intermixed_args(arguments)


def check_command_line(arguments: Sequence[str]) -> None:
    """Raise ConfigError if an argument is not UTF-8, or if the current folder was deleted."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:  # Python represents bytes that it cannot decode as lone surrogates
            raise _undecoded(argument) from None
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("output_dir", "the current folder does not exist any more; change to another one") from None


def _undecoded(argument: str) -> ConfigError:
    """Return the error for an argument with bytes that Python could not decode, as its locale says."""
    with suppress(UnicodeError):
        shown = os.fsencode(argument).decode()
        problem = f"'{shown}' cannot be read in this locale, which is not UTF-8; set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        return ConfigError("command line", problem)
    shown = argument.encode(errors="backslashreplace").decode()
    return ConfigError("command line", f"'{shown}' is not in UTF-8; rename it, or write it in UTF-8")


def secure_streams() -> None:
    """Prevent this process, and those that it starts, from failing because of a standard stream.

    - A closed stream is replaced by /dev/null. Otherwise the next file to be opened would get its number, and then
      everything that is printed.
    - Output is dropped once nobody reads it any more.
    - Characters that the encoding lacks are written as backslash escapes.
    - In log lines, characters that a terminal would act on are escaped too, and passwords in URIs are hidden.
    """
    logging.setLogRecordFactory(SafeRecord)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.dup2(null, number)
            os.set_inheritable(number, True)
            if null != number:
                os.close(null)
    if sys.stdin is None:
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # otherwise something in this process captures it
            secured = _secured(stream, number)
            setattr(sys, name, secured)
            setattr(sys, f"__{name}__", secured)


def _secured(stream: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
    """Return a stream for that file number with the same settings, secured as `secure_streams` describes."""
    raw = _Dropping(number, "w", closefd=False)
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)
    if isinstance(getattr(stream.buffer, "raw", stream.buffer), _Dropping):
        return stream
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # type: ignore[arg-type]  # as Python does with -u
        stream.encoding,
        "backslashreplace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Dropping(io.FileIO):
    """A file whose writes always succeed. After the first failure, everything is dropped."""

    def write(self, data: "ReadableBuffer", /) -> int:
        with suppress(OSError):
            return super().write(data)
        with suppress(OSError):  # then writers outside Python, and child processes, get no error either
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
        return memoryview(data).nbytes
