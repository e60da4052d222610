"""All checks, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from everest.doctor.decoders import check_decoders
from everest.doctor.devices import check_devices
from everest.doctor.finding import Finding, first_line
from everest.doctor.packages import PACKAGE, check_packages
from everest.doctor.system import check_system

CHECKS: Final[dict[str, Callable[[], Iterator[Finding]]]] = {
    "packages": check_packages,
    "devices": check_devices,
    "decoders": check_decoders,
    "system": check_system,
}


def examine() -> list[Finding]:
    """What all checks find. One that cannot even be made is a finding too."""
    found: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            found += check()
        except ImportError as error:
            mend = f"run `pip install --force-reinstall {PACKAGE}`"
            found.append(Finding(name=name, state="broken", found=first_line(error), mend=mend))
    return found
