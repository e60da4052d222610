"""`everest doctor`"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from everest_cli import options as o
from everest_cli.output import print_json

if TYPE_CHECKING:
    from everest.profiling.doctor import CheckResult


def doctor(as_json: o.AsJson = False) -> None:
    """Examine this machine: packages, devices, decoders, disk; prints every problem with its fix.

    Example: everest doctor
    """
    from everest.profiling.doctor import examine

    found = examine()
    healthy = all(finding.state != "broken" for finding in found)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in found]})
    else:
        _print_table(found)
    if not healthy:
        raise typer.Exit(5)


def _print_table(found: list[CheckResult]) -> None:
    """Print a line per check, and below it the fix."""
    widest = max(len(finding.name) for finding in found)
    for finding in found:
        typer.echo(f"{finding.state:<8} {finding.name:<{widest}} {finding.found}")
        if finding.mend is not None:
            typer.echo(f"{'':<8} {'':<{widest}} fix: {finding.mend}")
