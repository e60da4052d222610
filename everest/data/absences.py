"""Which videos of a list are not there."""

from __future__ import annotations

from collections.abc import Sequence

from everest.system.storage import RemotePath, located


def absences(paths: Sequence[str]) -> dict[str, str]:
    """Why videos are not there, of those that are not. Of a storage each folder is listed once."""
    missing: dict[str, str] = {}
    listed: dict[RemotePath, set[RemotePath]] = {}
    for path in paths:
        video = located(path)
        try:
            if isinstance(video, RemotePath):
                there = video in _listed(video.parent, listed)
            else:
                there = video.exists()
        except OSError as error:  # a name that is too long, a folder that may not be entered
            missing[path] = f"cannot look for {path}: {error.strerror}"
        else:
            if not there:
                missing[path] = f"no file {path}"
    return missing


def _listed(folder: RemotePath, listed: dict[RemotePath, set[RemotePath]]) -> set[RemotePath]:
    """What a folder of a storage holds, asked once."""
    if folder not in listed:
        try:
            listed[folder] = set(folder.iterdir())
        except FileNotFoundError:
            listed[folder] = set()
    return listed[folder]
