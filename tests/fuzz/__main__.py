"""Runs cases from the command line; exit code 1 if one fails. See `python -m tests.fuzz --help`."""

import argparse
import gc
import importlib
import multiprocessing
import os
import pkgutil
import sys
import tempfile
from collections import Counter, defaultdict
from functools import partial
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
from .outcome import Outcome
from .worker import run_batch, run_case

KINDS = {kind.name: kind for kind in (*RECIPE_KINDS, *LIST_KINDS, *WEIGHT_KINDS, *RUN_KINDS, *VIDEO_KINDS)}
KEPT = 3  # inputs of failing cases that are kept for each cause
BATCH = 25  # cases of a process
SECONDS = 60.0  # for a case; generous, because a busy machine is no hang


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    for package in (everest, everest_cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    kinds = [KINDS[name] for name in options.kinds or KINDS]
    with tempfile.TemporaryDirectory(prefix="everest-fuzz-") as temporary:
        bases, cases = Bases(Path(temporary) / "bases"), Path(temporary) / "cases"
        context = multiprocessing.get_context("fork")
        builder = context.Process(target=bases.build, args=({name for kind in kinds for name in kind.needs},))
        builder.start()
        builder.join()
        assert builder.exitcode == 0
        if options.index is not None:
            ids = [CaseId(kind.name, options.seed, options.index) for kind in kinds]
            outcomes = [run_case(KINDS[case_id.kind], case_id, bases, cases) for case_id in ids]
            print("\n".join(map(str, outcomes)))
        else:
            ids = _ids(kinds, options)
            batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
            gc.freeze()  # fewer pages to copy after a fork
            with context.Pool(options.workers) as pool:
                run = partial(run_batch, KINDS, bases, cases, SECONDS)
                outcomes = [outcome for batch in pool.imap(run, batches) for outcome in batch]
            gc.unfreeze()
            print(_summary(outcomes))
        failures = [outcome for outcome in outcomes if outcome.problems]
        kept: Counter[str] = Counter()
        for outcome in failures:
            kept[outcome.key] += 1
            if kept[outcome.key] <= KEPT:
                folder = options.keep / str(outcome.id)
                folder.mkdir(parents=True, exist_ok=True)
                KINDS[outcome.id.kind].make(outcome.id.rng(), folder, bases)
                (folder / "REPORT.txt").write_text(str(outcome), errors="replace")
    if failures:
        print(f"inputs of failing cases: {options.keep}", file=sys.stderr)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=f"{', '.join(KINDS)} [all]"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, help="run this case alone and show what it printed")
    parser.add_argument("--cases", type=int, help="cases in all, divided as in a full run [a full run]")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    default = Path(tempfile.gettempdir()) / "everest-fuzz-failures"
    parser.add_argument("--keep", type=Path, default=default, help="folder for the inputs of failing cases")
    return parser.parse_args()


def _ids(kinds: list[Kind], options: argparse.Namespace) -> list[CaseId]:
    full = sum(kind.share for kind in kinds)
    counts = {kind.name: max(1, kind.share * (options.cases or full) // full) for kind in kinds}
    return [CaseId(name, options.seed, index) for name, count in counts.items() for index in range(count)]


def _summary(outcomes: list[Outcome]) -> str:
    """A line for each kind, then each cause of failures with the command that shows it."""
    by_kind, causes = defaultdict(list), defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.id.kind].append(outcome)
        if outcome.problems:
            causes[outcome.key].append(outcome)
    lines = []
    for kind, same in by_kind.items():
        codes = ", ".join(
            f"{code}: {count}" for code, count in sorted(Counter(str(o.code) for o in same).items())
        )
        slowest, peak = max(o.seconds for o in same), max(o.peak_bytes for o in same) >> 20
        lines.append(
            f"{kind}: {len(same)} cases, slowest {slowest:.2f} s, peak {peak} MiB; exit codes {codes}"
        )
    lines += [f"{len(same)} x {cause}\n  {same[0].id.command}" for cause, same in causes.items()]
    return "\n".join([*lines, f"{sum(map(len, causes.values()))} of {len(outcomes)} cases fail"])


if __name__ == "__main__":
    sys.exit(main())
