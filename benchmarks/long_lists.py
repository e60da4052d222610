"""The commands that read the lists of a large data set before anything is trained: their time and memory.

    python benchmarks/long_lists.py WORK

WORK gets a list of 240,000 videos in 400 classes, as in Kinetics-400: hard links to a few copies of a small
video. CPU seconds of the command with its processes, and the memory of the largest one. The results are in
results/long_lists.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import torch
from measuring import HERE, machine, write_results

from everest.video.writer import write_video

CLASSES, VIDEOS = 400, 600  # videos of each class
LINKS: Final = 50_000  # of a file; ext4 has at most 65,000
COMMANDS: Final = {
    "prepare split": ("prepare", "split", "all.csv", "--output", "lists", "--overwrite"),
    "recipes suggest": ("recipes", "suggest", "lists", "--device", "80GB", "--output", "suggested.yaml"),
    "pretrain --dry-run": ("pretrain", "--recipe", "small", "--data", "lists", "--gpus", "cpu", "--dry-run"),
}


def make_videos(folder: Path) -> None:
    """Write the videos and the list `all.csv`."""
    rows = []
    for number in range(CLASSES * VIDEOS):
        copy = folder / f"copy{number // LINKS}.mp4"
        if number % LINKS == 0:
            write_video(copy, torch.randint(0, 256, (80, 64, 64, 3), dtype=torch.uint8), 25)
        label, name = f"class{number // VIDEOS:03}", f"{number:06}.mp4"
        (folder / label).mkdir(exist_ok=True)
        os.link(copy, folder / label / name)
        rows.append(f"{label}/{name} {label}\n")
    (folder / "all.csv").write_text("".join(rows))


def measure(words: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """The CPU seconds and the memory of a command, in a process of its own."""
    command = [sys.executable, "-m", "everest_cli", *words]
    child = os.fork()
    if child == 0:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        row = f"{used.ru_utime + used.ru_stime} {used.ru_maxrss} {done.returncode}"
        (folder / "used.txt").write_text(row)
        (folder / "output.txt").write_text(done.stdout + done.stderr)
        os._exit(0)
    os.waitpid(child, 0)
    seconds, kilobytes, code = (folder / "used.txt").read_text().split()
    if int(code):
        raise SystemExit((folder / "output.txt").read_text())
    return {"cpu_seconds": round(float(seconds), 1), "gigabytes": round(int(kilobytes) * 1024 / 1e9, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", choices=COMMANDS, help="print this one, and write no results")
    folder = parser.parse_args().work.absolute()
    only = parser.parse_args().only
    if not (folder / "all.csv").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make_videos(folder)
    rows = {}
    for name, words in COMMANDS.items():
        if only in (None, name):
            rows[name] = measure(words, folder)
            print(name, rows[name], flush=True)
    if only is None:
        document = {"machine": machine(), "videos": CLASSES * VIDEOS, "commands": rows}
        write_results(HERE / "results" / "long_lists.json", document)


if __name__ == "__main__":
    main()
