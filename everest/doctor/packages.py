"""Python and the packages, against the versions that everest's own metadata asks for and was tested with."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from everest.doctor.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE: Final = "everest-video"
# For users; the others are for developers.
EXTRAS: Final = ("energy", "export", "remote", "shards", "trackers")


def check_packages() -> Iterator[Finding]:
    """Python, every needed package, every optional one."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        about = importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        yield Finding(name=PACKAGE, state="warning", found="not installed", mend="run `pip install .`")
        return
    yield Finding(name=PACKAGE, state="ok", found=about["Version"])
    python, asked = platform.python_version(), about["Requires-Python"]
    fits = SpecifierSet(asked).contains(python, prereleases=True)
    yield Finding(
        name="Python",
        state="ok" if fits else "broken",
        found=python,
        mend=None if fits else f"install Python {asked}",
    )
    requirements = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _needed(requirement)
    for extra in EXTRAS:
        yield from (_optional(requirement, extra) for requirement in requirements if _of(requirement, extra))


def _of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _needed(requirement: Requirement) -> Finding:
    version = _version(requirement)
    if version is None:
        mend = f"run `pip install '{requirement.name}{requirement.specifier}'`"
        return Finding(name=requirement.name, state="broken", found="not installed", mend=mend)
    return _judged(requirement, version)


def _optional(requirement: Requirement, extra: str) -> Finding:
    version = _version(requirement)
    if version is None:
        mend = f"if wanted: `pip install '{PACKAGE}[{extra}]'`"
        return Finding(name=requirement.name, state="absent", found=f"not installed ({extra})", mend=mend)
    return _judged(requirement, version)


def _version(requirement: Requirement) -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _judged(requirement: Requirement, version: str) -> Finding:
    """An installed version against the oldest that works and the newest that was tested."""
    name, asked = requirement.name, requirement.specifier
    if asked.contains(version, prereleases=True):
        return Finding(name=name, state="ok", found=version)
    oldest = [part for part in asked if part.operator == ">="]
    mend = f"run `pip install '{name}{asked}'`"
    if any(not part.contains(version, prereleases=True) for part in oldest):
        return Finding(name=name, state="broken", found=f"{version}, too old", mend=mend)
    found = f"{version}, newer than tested"
    return Finding(name=name, state="warning", found=found, mend=f"in case of trouble {mend}")
