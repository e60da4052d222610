"""A terminal, or another reader of the messages, that is closed while a command runs."""

from __future__ import annotations

import errno
import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager


def leave_closed_terminal() -> None:
    """Let standard streams that belong to a closed terminal lead nowhere: writing to it is an error (EIO)."""
    for descriptor in (0, 1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:  # ENOTTY of anything but a terminal
            if error.args[0] == errno.EIO:
                _lead_nowhere(descriptor)


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def writing_to_terminal() -> Iterator[None]:
    """Around messages on stderr: if no one can read them any more, they are lost, and that is no error."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            leave_closed_terminal()
        elif error.errno in (errno.EPIPE, errno.ENOSPC):  # the reader of a pipe has ended; a full disk
            _lead_nowhere(2)
        else:
            raise
