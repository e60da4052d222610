"""Runs cases from the command line; exit code 1 if one fails. See `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: no threads, so that this process can be forked
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import everest
import everest_cli

from .bases import Bases
from .case import CaseId, Kind
from .cases_lists import LIST_KINDS
from .cases_recipes import RECIPE_KINDS
from .cases_runs import RUN_KINDS
from .cases_videos import VIDEO_KINDS
from .cases_weights import WEIGHT_KINDS
from .report import Report
from .runner import SECONDS, Runner, in_fork

KINDS = {kind.name: kind for kind in (*RECIPE_KINDS, *LIST_KINDS, *WEIGHT_KINDS, *RUN_KINDS, *VIDEO_KINDS)}
KEPT = 3  # inputs of failing cases that are kept for each cause


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    for package in (everest, everest_cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    kinds = [KINDS[name] for name in options.kinds or KINDS]
    ids = _ids(kinds, options)
    with tempfile.TemporaryDirectory(prefix="everest-fuzz-") as temporary:
        bases = Bases(Path(temporary) / "bases")
        bases.root.mkdir()
        needs = {name for kind in kinds for name in kind.needs}
        in_fork(lambda: bases.build(needs))
        by_name = {kind.name: kind for kind in kinds}
        runner = Runner(by_name, bases, Path(temporary), options.workers, options.timeout)
        report = Report()
        started = time.monotonic()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped run reports what it has found
        with contextlib.suppress(KeyboardInterrupt):
            for outcome in runner.run(ids):
                if report.add(outcome) <= KEPT and outcome.problems:
                    name = f"{outcome.id.seed}-{outcome.id.index}"
                    runner.keep_input(outcome, options.keep / str(outcome.id.kind) / name)
                if options.index is not None:
                    _show(outcome)
        report.seconds = time.monotonic() - started
    if options.json:
        print(json.dumps(report.to_dict(), indent=1))
    elif options.index is None:
        print(report.text())
    if report.failed:
        print(f"inputs of failing cases: {options.keep}", file=sys.stderr)
    return 1 if report.failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} [all]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, help="run this case alone and show what it printed")
    parser.add_argument("--cases", type=int, help="cases in all, divided as in a full run [a full run]")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--timeout", type=float, default=SECONDS, help="seconds for a case")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for the inputs of failing cases")
    options = parser.parse_args()
    unknown = set(options.kinds) - KINDS.keys()
    if unknown:
        parser.error(f"unknown kind {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    options.keep = options.keep or Path(tempfile.gettempdir()) / "everest-fuzz-failures"
    return options


def _ids(kinds: list[Kind], options: argparse.Namespace) -> list[CaseId]:
    if options.index is not None:
        return [CaseId(kind.name, options.seed, options.index) for kind in kinds]
    full = sum(kind.share for kind in kinds)
    counts = {kind.name: max(1, kind.share * (options.cases or full) // full) for kind in kinds}
    return [CaseId(name, options.seed, index) for name, count in counts.items() for index in range(count)]


def _show(outcome) -> None:
    print(f"everest {' '.join(outcome.argv)}\nexit code {outcome.code}, {outcome.seconds:.2f} s")
    print(f"stdout: {outcome.stdout[:2000]}\nstderr: {outcome.stderr[-6000:]}")
    print("\n".join(f"PROBLEM: {problem}" for problem in outcome.problems) or "no problem")


if __name__ == "__main__":
    sys.exit(main())
