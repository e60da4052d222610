"""What `everest train` chooses and reaches on sets of clips: python benchmarks/candidates.py OUT SET.csv …

A set is a list with the columns path, label and group. Each is tested in five folds over its groups, once for
every --init, and once without weights if --scratch is given. A row of the result has the accuracy of the
delivered model and of each candidate with 95 % intervals over groups, the choice, and the minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import everest

KEYS = ("metric", "interval", "groups", "videos", "chosen", "candidates", "difference", "minutes", "judgment")


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that is published: without paths."""
    chosen = [fold["chosen"] for fold in result["folds"]]
    return {
        "value": result[result["metric"]],
        **{key: result[key] for key in KEYS},
        "chosen in folds": chosen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the projects and of candidates.json")
    parser.add_argument("sets", type=Path, nargs="+", help="lists of labeled clips")
    parser.add_argument("--init", action="append", default=[], help="weights as of `everest train --init`")
    parser.add_argument("--scratch", action="store_true", help="also without weights, which trains networks")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--hours", type=float, help="of each set without weights [as suggested]")
    arguments = parser.parse_args()
    starts = [*arguments.init, *([None] if arguments.scratch else [])]
    rows = {}
    for listed in arguments.sets:
        for start in starts:
            name = "none" if start is None else start.partition("=")[0].removeprefix("timm:")
            hours = arguments.hours if start is None else None
            folder = arguments.out / f"{listed.stem}-{name.replace('/', '-')}"
            result = everest.train(listed, init=start, folds=arguments.folds, hours=hours, output=folder)
            rows[f"{listed.stem}, {name}"] = row_of(result)
            text = json.dumps(rows, indent=1) + "\n"  # after each row, so that a killed call has those before
            (arguments.out / "candidates.json").write_text(text)
            print(f"{folder.name}: {result['judgment']}", flush=True)


if __name__ == "__main__":
    main()
