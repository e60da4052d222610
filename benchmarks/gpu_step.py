"""Steps on one GPU: clips/s, fraction of its peak, memory; against everest's VideoMAE and two others.

    python benchmarks/gpu_step.py [--seconds 3] [--only NAME,…]

A batch of random clips, bf16, forward, backward and fused AdamW, as in a training run. Each row states
whether the host waits for the device in a step, and how many graphs were compiled; a step that is compiled
again while it is timed is an error. Rows are written at once, to gpu_step.jsonl in the folder OUT.
`gpu_page.py` makes tables of them.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from gpu_cases import EVEREST, VIDEOMAE, VIEWS, StepCase, measure
from gpu_kernels import importance
from gpu_page import steps_and_goals
from gpu_rows import Rows
from measuring import machine

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of timed steps, for each batch")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which no case begins")
    parser.add_argument("--only", help="beginnings of the names of cases, with commas")
    options = parser.parse_args()
    only = ["machine", *(f"step {name}" for name in options.only.split(","))] if options.only else []
    rows = Rows(Path(os.environ.get("OUT", ".")) / "gpu_step.jsonl", limit=options.limit, only=only)
    rows.run("machine", lambda: iter([machine()]))
    rows.run("importance", partial(importance, options.seconds), needs=20)
    measure_steps(rows, (*EAGER, *COMPILED), options.seconds)
    print(steps_and_goals(rows.written))


if __name__ == "__main__":
    main()
