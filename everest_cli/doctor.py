"""`everest doctor`"""

from __future__ import annotations

from dataclasses import asdict

import typer

from everest_cli import options as o
from everest_cli.output import print_json


def doctor(as_json: o.AsJson = False) -> None:
    """Check packages, devices, decoders and disk; prints problems, fixes and a verdict.

    Example: everest doctor
    """
    from everest.profiling.doctor import run_checks, verdict

    results = run_checks()
    healthy = all(result.state != "broken" for result in results)
    if as_json:
        findings = [asdict(result) for result in results]
        print_json({"healthy": healthy, "verdict": verdict(results), "findings": findings})
    else:
        widest = max(len(result.name) for result in results)
        for result in results:
            typer.echo(f"{result.state:<8} {result.name:<{widest}} {result.found}")
            if result.fix is not None:
                typer.echo(f"{'':<8} {'':<{widest}} fix: {result.fix}")
        typer.echo(verdict(results))
    if not healthy:
        raise typer.Exit(5)
