"""When a pre-training run is probed, and what is logged and shown then."""

from __future__ import annotations

from typing import Any, Final

import torch

from everest.engine.probe_advice import Row, new_warnings, probe_rows, sentence
from everest.engine.training import Training
from everest.errors import DivergedError
from everest.models.spec import ModelSpec
from everest.models.views import ViewModel
from everest.system.accelerator import decide_on_main

# Our choice. The recipes of the papers show 5 to 25 % to the encoder. He et al. 2022 (MAE), figure 5: if less
# than half of an image is hidden, a linear classifier of the features is far less accurate.
MOST_VISIBLE: Final = 0.5


def too_little_hidden(spec: ModelSpec) -> str | None:
    """A warning if the encoder sees most of the tokens: the loss may fall then without useful features."""
    grid = spec.grid
    blank = torch.zeros(1, grid.num_tokens, device="meta")
    share = spec.selection(grid, importance=blank, noise=blank).visible.size(1) / grid.num_tokens
    if share <= MOST_VISIBLE:
        return None
    return (
        f"the encoder sees {share:.0%} of the tokens, so the hidden ones can be predicted from their "
        "neighbors; hide more of them (pretrain.selection)"
    )


def read_probes(training: Training) -> None:
    """Remember the probes that a resumed run has logged."""
    if training.prober is not None:
        training.prober.rows = decide_on_main(training.accelerator, lambda: probe_rows(training.run.rows()))


def probe_if_due(training: Training) -> None:
    """Probe the model after the last update, unless that is not due or was done before the run was resumed.

    Raises:
        DivergedError: the features of a run between views have collapsed.
        UserError: see `Prober.measure`.
    """
    prober, plan, step = training.prober, training.plan, training.steps_done
    if prober is None or not training.is_loaded or step not in prober.steps:
        return
    rows = prober.rows
    if any(row["step"] == step for row in rows):
        return
    if step:
        training.save()  # first: a probe may take long, and may fail
    row: Row = {"step": step, **prober.measure()}
    training.log(row)
    rows.append(row)
    event: dict[str, Any] = {
        "event": "probe",
        "epoch": plan.epoch(max(step - 1, 0)),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "rank_most": prober.rank_most,
        "first": rows[0],
    }
    training.report({**event, **row})
    for kind, warning in prober.impossible(row).items():
        training.warn_once(kind, warning)
    sizes = {"videos": prober.num_videos, "held_out": prober.num_held_out}
    found = new_warnings(rows, steps=plan.steps, **sizes)
    # Nothing is predicted between views, so the loss may still fall.
    ends = step < plan.steps and isinstance(training.state.trained_model, ViewModel)
    collapse = found.pop("collapse", None) if ends else None
    for kind, warning in found.items():
        training.warn_once(kind, warning)
    if collapse is not None:
        raise DivergedError(f"{collapse}; the same command resumes the run nevertheless")


def probe_summary(training: Training) -> str | None:
    """The last sentence about the probes of a run, with their cost; None without probes."""
    prober = training.prober
    if prober is None or not prober.rows:
        return None
    seconds = sum(row["probe_seconds"] for row in prober.rows)
    batch = training.plan.batch_size
    speeds = [row["clips_per_second"] for row in training.run.rows() if row.get("clips_per_second")]
    whole = seconds + sum(batch / speed for speed in speeds)
    text = sentence(
        prober.rows,
        steps=training.plan.steps,
        videos=prober.num_videos,
        rank_most=prober.rank_most,
    )
    return f"{text}. {len(prober.rows)} probes took {seconds:.0f} s, {seconds / whole:.1%} of the run"
