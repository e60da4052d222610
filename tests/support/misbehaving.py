"""Work that ends or holds up the process that does it, as decoders do. Each process imports this file."""

import os
import re
import signal


def misbehave(item: str) -> str:
    """`hang` never leaves C code, so that no handler in Python could end it."""
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "exit":
        os._exit(3)
    if item == "hang":
        re.match(r"(a+)+$", "a" * 60 + "b")
    return item.upper()
