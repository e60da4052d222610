"""CPU time until a command answers that needs no torch, against starting Python and importing torch.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median
from typing import Any

from measuring import by_machine, markdown, publish, with_earlier

ROUNDS = 7
GOAL = 0.3  # CPU seconds of a --help
EVEREST = ("-m", "everest_cli")
COMMANDS: dict[str, tuple[str, ...]] = {
    "python": ("-c", "pass"),
    "import typer": ("-c", "import typer"),
    "import torch": ("-c", "import torch"),
    "import torch, timm": ("-c", "import torch, timm"),
    "everest --help": (*EVEREST, "--help"),
    "everest --version": (*EVEREST, "--version"),
    "everest profile --help": (*EVEREST, "profile", "--help"),
    "everest pretrain --help": (*EVEREST, "pretrain", "--help"),
    "an argument error": (*EVEREST, "pretrain", "--nonsense"),
    "everest profile --json": (*EVEREST, "profile", "--backbone", "vit-b", "--json"),
    "everest profile --paper": (*EVEREST, "profile", "--paper"),
}
GOALS = {name: GOAL for name in COMMANDS if name.endswith(("help", "version", "error"))}
GOALS |= {"everest profile --json": 5.0, "everest profile --paper": 10.0}


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """Of a process from its start to its end, its children included."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS + 1):  # in turns; the first round fills caches
        for name, arguments in COMMANDS.items():
            seconds[name].append(cpu_seconds(arguments))
    rows: list[dict[str, Any]] = []
    for name, values in seconds.items():
        goal, found = GOALS.get(name), median(values[1:])
        row = {"command": name, "cpu_seconds": round(found, 3), "least": round(min(values[1:]), 3)}
        rows.append(
            {**row, "most": round(max(values[1:]), 3), "goal": goal, "met": not goal or found <= goal}
        )
    rows = with_earlier("startup", rows, key=("command",))
    publish("startup", rows, by_machine(rows, table))


def table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["command"],
            f"{row['cpu_seconds']:.2f} ({row['least']:.2f}-{row['most']:.2f})",
            "" if row["goal"] is None else f"{row['goal']}: {'met' if row['met'] else 'missed'}",
        ]
        for row in rows
    ]
    return markdown(["command", "CPU seconds, median (range)", "goal"], cells)


if __name__ == "__main__":
    main()
