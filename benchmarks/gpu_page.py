"""The tables of benchmarks/performance.md about a GPU, from the rows that gpu_first.py has measured.

    python benchmarks/gpu_page.py FILE …

It measures nothing, and needs no GPU. The rows are written to results/gpu_page.json as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpu_rows import Row
from measuring import PAGE, markdown, publish

# A case, another one, and the goal for the ratio of the first to the second.
Compared = tuple[str, str, float]

FASTER: tuple[Compared, ...] = (  # clips/s, at least
    ("everest-s", "videomae-s", 2.0),
    ("everest-b", "videomae-b", 1.8),
    ("everest-l", "videomae-l", 1.4),
    ("everest-b", "plain-videomae-b", 2.2),
)
SMALLER: tuple[Compared, ...] = (  # memory per clip, at most
    ("everest-l", "videomae-l", 0.66),
    ("everest-l", "plain-videomae-l", 0.30),
)
MFU_GOALS = {"blocks-everest-s": 0.20, "blocks-everest-b": 0.40}


def goals(rows: list[Row]) -> list[dict[str, Any]]:
    """The comparisons of cases that were measured: speed at the largest batch that both have."""
    checks = []
    for one, other, goal in FASTER:
        first, second = (_by_batch(rows, name, "clips_per_second") for name in (one, other))
        if both := first.keys() & second.keys():
            share = first[max(both)] / second[max(both)]
            name = f"speed with {max(both)} clips, {one} / {other}"
            checks.append({"check": name, "value": share, "goal": goal, "met": share >= goal})
    for one, other, goal in SMALLER:
        first, second = (_by_batch(rows, name, "memory_bytes_per_clip") for name in (one, other))
        if first and second:
            share = first[max(first)] / second[max(second)]
            check = {"check": f"memory per clip, {one} / {other}", "value": share, "goal": goal}
            checks.append({**check, "met": share <= goal})
    for name, goal in MFU_GOALS.items():
        if shares := _by_batch(rows, name, "mfu"):
            best = max(shares.values())
            checks.append(
                {"check": f"fraction of peak, {name}", "value": best, "goal": goal, "met": best >= goal}
            )
    return checks


def _by_batch(rows: list[Row], case: str, key: str) -> dict[int, float]:
    return {row["batch"]: row[key] for row in rows if row.get("case") == case and row[key] is not None}


def steps_and_goals(rows: list[Row]) -> str:
    """The steps, and the goals that they meet or miss."""
    head = ["step", "batch", "compiled", "ms, median (p10-p90)", "clips/s", "TFLOP/s", "fraction of peak"]
    head += ["peak memory (GB)", "memory per clip (MB)", "joules per clip", "host waits"]
    cells = [
        [
            *(row["case"], str(row["batch"]), row["compiled"]),
            f"{row['ms']:.1f} ({row['ms_p10']:.1f}-{row['ms_p90']:.1f})",
            *(f"{row['clips_per_second']:.0f}", f"{row['tflops']:.0f}", f"{row['mfu']:.1%}"),
            f"{row['peak_memory_bytes'] / 1e9:.1f}",
            *(_or_empty(row["memory_bytes_per_clip"], 1e6, 1), _or_empty(row["joules_per_clip"], 1, 2)),
            "no" if row["waits"] is None else "yes",
        ]
        for row in rows
        if "case" in row
    ]
    lines = [f"- {row['item']}: {row['error']}" for row in rows if "error" in row and "step" in row["item"]]
    for check in goals(rows):
        met = "met" if check["met"] else "missed"
        lines.append(f"- {check['check']}: {check['value']:.4g}, goal {check['goal']}: {met}")
    return "\n".join([markdown(head, cells), "", *lines])


def _or_empty(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def videos(rows: list[Row]) -> str:
    """The loader alone, and training runs."""
    loaders = [row for row in rows if row["item"].startswith("loader") and "workers" in row]
    keys = ("clips_per_second", "clips_per_second_of_one_process")
    loaded = [
        [str(row["workers"]), str(row["views"]), *(f"{row[key]:.0f}" for key in keys)] for row in loaders
    ]
    runs = [row for row in rows if row["item"].startswith("run ") and "run" in row]
    trained = [
        [
            *(row["run"].replace("_", " "), str(row["steps"]), f"{row['clips_per_second']:.0f}"),
            f"{row['clips_per_second_p10']:.0f}-{row['clips_per_second_p90']:.0f}",
            f"{row['data_wait']:.0%}",
        ]
        for row in runs
    ]
    tables = [
        (["workers of the loader alone", "views of a video", "clips/s", "clips/s of one process"], loaded),
        (["training run", "steps", "clips/s, median", "p10-p90", "waits for videos"], trained),
    ]
    return "\n\n".join(filter(None, (_table(*table) for table in tables)))


def _table(head: list[str], cells: list[list[str]]) -> str:
    """Nothing if nothing was measured."""
    return markdown(head, cells) if cells else ""


TABLES: tuple[Callable[[list[Row]], str], ...] = (steps_and_goals, videos)


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of the files, each with the machine and the commit that measured it."""
    rows, machine = [], {}
    for line in (line for path in paths for line in path.read_text().splitlines()):
        row = json.loads(line)
        if row["item"] == "machine":
            machine = row
        short = {key: machine.get(key) for key in ("gpu", "torch", "cuda", "commit")}
        kept = {key: value for key, value in row.items() if key != "messages"}  # they name folders
        rows.append({**kept, "machine": short})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, default=PAGE, help="with the marks for the tables")
    options = parser.parse_args()
    rows = read(options.files)
    machines = [row["machine"] for row in rows]
    where = dict.fromkeys(f"{one['gpu']}, PyTorch {one['torch']}, CUDA {one['cuda']}" for one in machines)
    if len(where) > 1:
        raise SystemExit(f"rows of several machines: {'; '.join(where)}")
    tables = [make(rows) for make in TABLES]
    publish(
        "gpu_page", rows, "\n\n".join([f"{next(iter(where))}:", *filter(None, tables)]), page=options.page
    )


if __name__ == "__main__":
    main()
