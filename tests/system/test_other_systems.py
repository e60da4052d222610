"""Nothing that only POSIX has is needed to import everest, so that Windows stays possible."""

import subprocess
import sys

IMPORTS = """
import importlib, os, pkgutil, signal, sys
import accelerate, psutil, torch  # which have versions of their own for Windows
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios"):
    sys.modules[name] = None
del signal.SIGUSR1, signal.SIGHUP, os.sched_getaffinity
for package in map(importlib.import_module, ("everest", "everest_cli", "everest_demo")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from everest.system.processes import num_cores
from everest.system.signals import STOP_SIGNALS
assert STOP_SIGNALS == (signal.SIGINT, signal.SIGTERM), STOP_SIGNALS
assert num_cores() >= 1
"""


def test_all_modules_are_imported_without_what_only_posix_has():
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
