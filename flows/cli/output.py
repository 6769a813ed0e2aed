"""How commands write on standard output."""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def standard_output() -> Iterator[None]:
    """Within it, characters that the encoding of the output lacks are written as escapes.

    Raises SystemExit(1) if the output cannot be written: silently if its reader has gone, as ``head`` does, and
    otherwise after a line that says why.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    unwritten = ""
    try:
        yield
    except OSError:
        unwritten = "\n"  # shows whether it was the output that failed
        raise
    finally:
        fault = _fault(unwritten)
        if fault is not None:
            if not isinstance(fault, BrokenPipeError):
                print(f"bitlm: standard output cannot be written: {fault.strerror}", file=sys.stderr)
            raise SystemExit(1) from None


def _fault(text: str) -> OSError | None:
    """What happens if ``text`` and all that is buffered is written. After a fault, output goes nowhere."""
    try:
        print(end=text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def print_json(value: Any, *, escaped: bool = True) -> None:
    """``escaped``: all but ASCII as \\u…, which every terminal and every program takes. Without it, so is what the
    encoding of the output lacks.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = json.dumps(value, ensure_ascii=escaped or not encoding.lower().startswith("utf"), indent=2)
    print(text)
