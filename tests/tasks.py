"""Functions for executors to map: in a module that a spawned worker can import."""

import os
import signal
import time
from pathlib import Path

from luthier.errors import UserError


def write(out: Path, text: str, log: str) -> None:
    """Write a file, and say so."""
    with Path(log).open("a") as file:
        file.write(text)
    (out / "text").write_text(text)


def fail(out: Path, text: str) -> None:
    """Fail at one task."""
    if text == "b":
        raise UserError("b is bad")
    (out / "text").write_text(text)


def name_process(out: Path) -> None:
    """Write which process does it."""
    (out / "pid").write_text(str(os.getpid()))


def note_times(out: Path) -> None:
    """Take a moment, and write when it began and ended."""
    began = time.time()
    time.sleep(0.3)
    (out / "times").write_text(f"{began} {time.time()}")


def kill_myself(out: Path) -> None:
    """Die as a worker does that the system kills for its memory."""
    os.kill(os.getpid(), signal.SIGKILL)
