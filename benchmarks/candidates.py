"""What `everest train` chooses and reaches on sets of clips: python benchmarks/candidates.py OUT FOLDER/SET …

A set is FOLDER/SET_train.csv, _val.csv, _test.csv and _classes.txt, whose clips are joined: it is tested in
folds over its groups, once for every --init, and once without weights if --scratch is given. The group of a
clip is that of FOLDER/clips.csv, else the part of its name up to a number after "_g". OUT/candidates.json
has the accuracy of the delivered model and of each candidate with 95 % intervals over groups, the choice,
and the minutes; OUT/candidates.md has them as a table. A repeated call goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import everest

KEYS = ("metric", "majority", "interval", "groups", "videos", "chosen", "candidates", "difference", "minutes")
HEADER = (
    "| set (clips, groups) | weights | most frequent class | small images | delivered | difference | chosen |"
)


def joined_list(prefix: Path, folder: Path) -> Path:
    """Write the list of all clips of a set, with their groups."""
    clips, names = prefix.with_name("clips.csv"), Path(f"{prefix}_classes.txt").read_text().splitlines()
    groups = {}
    if clips.is_file():
        with clips.open(newline="") as file:
            groups = {row["path"]: row["group"] for row in csv.DictReader(file)}
    rows = [("path", "label", "group")]
    for part in ("train", "val", "test"):
        for line in Path(f"{prefix}_{part}.csv").read_text().splitlines():
            path, _, label = line.rpartition(" ")
            numbered = re.match(r".*_g\d+", Path(path).stem)
            group = groups.get(path) or (numbered[0] if numbered else path)
            rows.append((str(prefix.parent.absolute() / path), names[int(label)], group))
    listed = folder / f"{prefix.name}.csv"
    with listed.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return listed


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that is published: without paths."""
    chosen = [fold["chosen"] for fold in result["folds"]]
    return {
        "value": result[result["metric"]],
        **{key: result[key] for key in KEYS},
        "chosen in folds": chosen,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a table, in percent with 95 % intervals over groups."""
    lines = [HEADER, "|---|---|---|---|---|---|---|"]
    for name, row in rows.items():
        listed, _, weights = name.partition(", ")
        images = next(each for each in row["candidates"] if each["name"] == "linear-images")
        chosen = Counter(row["chosen in folds"]).most_common()
        cells = [
            f"{listed} ({row['videos']}, {row['groups']})",
            weights,
            f"{row['majority']:.0f}",
            with_interval(images["test"], images["interval"]),
            with_interval(row["value"], row["interval"]),
            "" if row["difference"] is None else "{:+.1f} to {:+.1f}".format(*row["difference"]),
            ", ".join(f"{candidate} {times}" for candidate, times in chosen),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_interval(value: float, interval: list[float] | None) -> str:
    return f"{value:.1f}" if interval is None else f"{value:.1f} ({interval[0]:.0f} to {interval[1]:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the projects and of candidates.json")
    parser.add_argument("sets", type=Path, nargs="+", help="such as videos/mice")
    parser.add_argument("--init", action="append", default=[], help="weights as of `everest train --init`")
    parser.add_argument("--scratch", action="store_true", help="also without weights, which trains networks")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--hours", type=float, help="of each set without weights [as suggested]")
    parser.add_argument("--model", default="auto", help="of each set without weights; linear: no network")
    arguments = parser.parse_args()
    starts = [*arguments.init, *([None] if arguments.scratch else [])]
    rows = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for prefix in arguments.sets:
        listed = joined_list(prefix, arguments.out)
        for start in starts:
            name = "none" if start is None else start.partition("=")[0].removeprefix("timm:")
            hours, model = (arguments.hours, arguments.model) if start is None else (None, "auto")
            folder = arguments.out / f"{listed.stem}-{name.replace('/', '-')}"
            folds = arguments.folds
            result = everest.train(listed, init=start, folds=folds, hours=hours, model=model, output=folder)
            rows[f"{listed.stem}, {name}"] = row_of(result)
            text = json.dumps(rows, indent=1) + "\n"  # after each row, so that a killed call has those before
            (arguments.out / "candidates.json").write_text(text)
            (arguments.out / "candidates.md").write_text(table(rows))
            print(f"{folder.name}: {result['judgment']}", flush=True)


if __name__ == "__main__":
    main()
