"""Lets the code of everest meet a Python as it is on Windows: no POSIX modules, few signals, no fork.

Python imports this file at its start if its folder is in PYTHONPATH; child processes inherit that. Only the
files of everest see the imitation: the standard library and other packages keep what this system has. Files
that are open cannot be removed or replaced, folders cannot be opened, and only a writer can flush a file.
"""

import builtins
import errno
import multiprocessing
import os
import signal
import stat
import sys
import types
from pathlib import Path

PACKAGES = ("everest", "everest_cli", "everest_demo")
MISSING = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
OF_POSIX = {
    *("chown", "chroot", "fchmod", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups"),
    *("getloadavg", "getpgid", "getpgrp", "getsid", "getuid", "killpg", "lchown", "lockf", "mkfifo", "mknod"),
    *("nice", "openpty", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "pwrite", "readv"),
    *(
        "register_at_fork",
        "sched_getaffinity",
        "sched_setaffinity",
        "sendfile",
        "setpgid",
        "setsid",
        "setuid",
    ),
    *("statvfs", "sync", "sysconf", "uname", "wait", "wait3", "wait4", "writev"),
}


def is_of_everest(names):
    return str(names.get("__name__", "")).partition(".")[0] in PACKAGES


class View(types.ModuleType):
    """A module with some names less, some changed."""

    def __init__(self, module, hides, changed):
        super().__init__(module.__name__)
        self.__dict__["_parts"] = (module, hides, changed)

    def __getattr__(self, name):
        module, hides, changed = self.__dict__["_parts"]
        if name in changed:
            return changed[name]
        if hides(name):
            raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
        return getattr(module, name)

    def __setattr__(self, name, value):
        setattr(self.__dict__["_parts"][0], name, value)


def spawns_only(method=None):
    if method not in (None, "spawn"):
        raise ValueError(f"cannot find context for {method!r}")
    return real_context("spawn")


def opened(path, flags, *others, **options):
    if Path(path).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return real_open(path, flags, *others, **options)


def flushed(descriptor):
    import fcntl

    if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR):
        raise OSError(errno.EBADF, "Bad file descriptor")
    real_fsync(descriptor)


def files_in_use():
    """The files that this process has open or mapped into memory, by device and inode."""
    held = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            about = link.stat()
        except OSError:
            continue
        if stat.S_ISREG(about.st_mode):
            held.add((about.st_dev, about.st_ino))
    with real_builtin_open("/proc/self/maps") as maps:
        for line in maps:
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[5].startswith("/"):
                major, minor = (int(part, 16) for part in parts[3].split(":"))
                held.add((os.makedev(major, minor), int(parts[4])))
    return held


def refusing(function, which):
    """A function of `os` that refuses files that this process uses, if a file of everest asks for it."""

    def refuse(*paths, **options):
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in ("pathlib", "os", "shutil"):
            frame = frame.f_back
        if frame is not None and is_of_everest(frame.f_globals):
            for path in paths[:which]:
                try:
                    about = os.lstat(path)
                except OSError:
                    continue
                if str(path).endswith(".lock"):  # there filelock removes its file itself
                    continue
                if stat.S_ISREG(about.st_mode) and (about.st_dev, about.st_ino) in files_in_use():
                    error = PermissionError(errno.EACCES, "The file is being used by a process", str(path))
                    error.winerror = 32
                    raise error
        return function(*paths, **options)

    return refuse


real_import, real_context = builtins.__import__, multiprocessing.get_context
real_open, real_fsync, real_builtin_open = os.open, os.fsync, builtins.open
os.unlink, os.remove = refusing(os.unlink, 1), refusing(os.remove, 1)
os.replace, os.rename = refusing(os.replace, 2), refusing(os.rename, 2)
multiprocessing.set_start_method("spawn")
VIEWS = {
    "os": View(os, lambda name: name in OF_POSIX, {"open": opened, "fsync": flushed}),
    "signal": View(
        signal,
        lambda name: (
            (name.startswith("SIG") and name[3].isalpha() and name not in SIGNALS)
            or name in {"alarm", "getitimer", "pause", "pthread_kill", "setitimer", "siginterrupt", "sigwait"}
        ),
        # Another signal of this system is the one of Ctrl-Break.
        {"SIGBREAK": signal.SIGUSR2, "CTRL_BREAK_EVENT": signal.SIGUSR2},
    ),
    "multiprocessing": View(
        multiprocessing,
        lambda name: False,
        {"get_all_start_methods": lambda: ["spawn"], "get_context": spawns_only},
    ),
}


def psutil_of_windows():
    module = real_import("psutil")

    class Process(module.Process):
        def memory_info(self):
            values = super().memory_info()._asdict()
            return types.SimpleNamespace(**values, peak_wset=values["rss"])

    return View(module, lambda name: False, {"Process": Process})


def imported(name, globals=None, locals=None, fromlist=(), level=0):
    if not level and globals is not None and is_of_everest(globals):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        if name == "psutil" and name not in VIEWS:
            VIEWS[name] = psutil_of_windows()
        if name in VIEWS:
            return VIEWS[name]
    return real_import(name, globals, locals, fromlist, level)


builtins.__import__ = imported
