"""Steps on one GPU: clips/s, fraction of its peak, memory; against everest's VideoMAE and two others.

    python benchmarks/gpu_step.py [--seconds 3] [--only NAME,…]
    python benchmarks/gpu_step.py --publish FILE …

A batch of random clips, bf16, forward, backward and fused AdamW, as in a training run. Each row states
whether the host waits for the device in a step, and how many graphs were compiled; a step that is compiled
again while it is timed is an error. Rows are written at once, to gpu_step.jsonl in the folder OUT.
`--publish` measures nothing: it writes docs/performance.md from the rows of this script or of `gpu_first.py`.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from gpu_cases import EVEREST, VIDEOMAE, VIEWS, StepCase, measure
from gpu_kernels import importance
from gpu_rows import Row, Rows
from measuring import PAGE, machine, markdown, publish

Compared = tuple[
    str, str, float
]  # a case, another one, and the goal for the ratio of the first to the second

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
SAME_TOKENS = 0.999  # kept by bytes in bfloat16 and by float32

_B, _S, _L = ({"backbone": f"vit-{letter}"} for letter in "bsl")
_EVEREST, _VIDEOMAE = {"recipe": EVEREST}, {"recipe": VIDEOMAE}
EAGER = (
    StepCase(name="everest-b", **_EVEREST, **_B, batches=(64, 128, 256, 512), needs=40),
    StepCase(name="everest-s", **_EVEREST, **_S, batches=(128, 256)),
    StepCase(name="everest-l", **_EVEREST, **_L, batches=(64, 128)),
    StepCase(name="videomae-b", **_VIDEOMAE, **_B, batches=(64, 128, 256)),
    StepCase(name="videomae-s", **_VIDEOMAE, **_S, batches=(128, 256)),
    StepCase(name="views-b", recipe=VIEWS, **_B, batches=(64, 128, 256)),
    StepCase(name="videomae-l", **_VIDEOMAE, **_L, batches=(64, 128)),
    StepCase(
        name="everest-b-checkpointing",
        **_EVEREST,
        **_B,
        batches=(128, 256),
        overrides=("train.checkpointing=true",),
    ),
    StepCase(name="plain-everest-b", **_EVEREST, **_B, batches=(64, 128), code="plain"),
    StepCase(name="plain-videomae-b", **_VIDEOMAE, **_B, batches=(32, 64), code="plain"),
    StepCase(name="plain-videomae-l", **_VIDEOMAE, **_L, batches=(32, 64), code="plain"),
    StepCase(name="transformers-videomae-b", **_VIDEOMAE, **_B, batches=(32, 64), code="transformers"),
)
COMPILED = (
    StepCase(
        name="blocks-everest-b", **_EVEREST, **_B, batches=(128, 256, 1024), compiled="blocks", needs=110
    ),
    StepCase(name="whole-everest-b", **_EVEREST, **_B, batches=(256,), compiled="whole", needs=150),
    StepCase(
        name="whole-everest-b-all-activations",
        **_EVEREST,
        **_B,
        batches=(256,),
        compiled="whole",
        budget=1.0,
        needs=150,
    ),
    StepCase(name="blocks-everest-s", **_EVEREST, **_S, batches=(256,), compiled="blocks", needs=50),
    StepCase(name="blocks-views-b", recipe=VIEWS, **_B, batches=(256,), compiled="blocks", needs=60),
    StepCase(name="blocks-videomae-b", **_VIDEOMAE, **_B, batches=(256,), compiled="blocks", needs=50),
    StepCase(name="blocks-everest-l", **_EVEREST, **_L, batches=(256,), compiled="blocks", needs=60),
    StepCase(name="graph-everest-s", **_EVEREST, **_S, batches=(256,), compiled="graph", needs=150),
)


def measure_steps(rows: Rows, cases: tuple[StepCase, ...], seconds: float) -> None:
    """Write the rows of the cases; an error, such as too little memory, ends the batches of its case."""
    for case in cases:
        rows.run(f"step {case.name}", partial(measure, case, seconds=seconds), needs=case.needs)


def goals(rows: list[Row]) -> list[dict[str, Any]]:
    """The comparisons of cases that were measured: speed at the largest batch that both have."""
    checks = []
    for one, other, goal in FASTER:
        first, second = (_by_batch(rows, name, "clips_per_second") for name in (one, other))
        if both := first.keys() & second.keys():
            share = first[max(both)] / second[max(both)]
            checks.append(
                {"check": f"speed, {one} / {other}", "value": share, "goal": goal, "met": share >= goal}
            )
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
    for row in rows:
        if row.get("what") == "importance, bytes":
            same = row["kept_as_float32"]
            check = {"check": "kept tokens, bytes as float32", "value": same, "goal": SAME_TOKENS}
            checks.append({**check, "met": same >= SAME_TOKENS})
    return checks


def _by_batch(rows: list[Row], case: str, key: str) -> dict[int, float]:
    return {row["batch"]: row[key] for row in rows if row.get("case") == case and row[key] is not None}


def table(rows: list[Row]) -> str:
    head = ["step", "batch", "compiled", "ms, median (p10-p90)", "clips/s", "TFLOP/s", "fraction of peak"]
    head += ["peak memory (GB)", "memory per clip (MB)", "joules per clip", "host waits"]
    cells = [
        [
            *(row["case"], str(row["batch"]), row["compiled"]),
            f"{row['ms']:.1f} ({row['ms_p10']:.1f}-{row['ms_p90']:.1f})",
            *(f"{row['clips_per_second']:.0f}", f"{row['tflops']:.0f}", f"{row['mfu']:.1%}"),
            f"{row['peak_memory_bytes'] / 1e9:.1f}",
            *(_or_empty(row["memory_bytes_per_clip"], 1e6), _or_empty(row["joules_per_clip"], 1)),
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


def _or_empty(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of timed steps, for each batch")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which no case begins")
    parser.add_argument("--only", help="beginnings of the names of cases, with commas")
    parser.add_argument("--publish", nargs="+", type=Path, metavar="FILE", help="files with rows")
    parser.add_argument("--page", type=Path, default=PAGE, help="with the marks for the published table")
    options = parser.parse_args()
    if options.publish:
        lines = [line for path in options.publish for line in path.read_text().splitlines()]
        found = [json.loads(line) for line in lines]
        where = next((row for row in found if row["item"] == "machine"), {})
        title = f"{where.get('gpu')}, PyTorch {where.get('torch')}, CUDA {where.get('cuda')}:\n\n"
        measured = [{"machine": where, **row} for row in found if row is not where]
        publish("gpu_step", measured, title + table(found), page=options.page)
        return
    only = ["machine", *(f"step {name}" for name in options.only.split(","))] if options.only else []
    rows = Rows(Path(os.environ.get("OUT", ".")) / "gpu_step.jsonl", limit=options.limit, only=only)
    rows.run("machine", lambda: iter([machine()]))
    rows.run("importance", partial(importance, options.seconds), needs=20)
    measure_steps(rows, (*EAGER, *COMPILED), options.seconds)
    print(table(rows.written))


if __name__ == "__main__":
    main()
