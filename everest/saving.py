"""When a run is saved, what is written, and what it goes on from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from everest.config.settings import TrainSettings
from everest.errors import CheckpointError
from everest.plan import StagePlan
from everest.system.run_folder import RunFolder
from everest.system.weights import Weights, read_weights
from everest.train_state import TrainState, newest_state, save_state, set_aside_states_after


class Resumed(NamedTuple):
    """Where a run goes on."""

    step: int  # updates done
    notes: dict[str, Any] | None  # as given to `Saver.save`; None for a run that is new, or finished


class Saver:
    """Saves one run. All processes must ask for the same, at the same step.

    Args:
        weights: everything of `model.safetensors` but the tensors and the step.
        notify: told what a user should know.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunFolder,
        state: TrainState,
        weights: Weights,
        *,
        plan: StagePlan,
        settings: TrainSettings,
        notify: Callable[[str], None],
    ) -> None:
        self._accelerator = accelerator
        self._run = run
        self._state = state
        self._weights = weights
        self._plan = plan
        self._settings = settings
        self._notify = notify
        self._saved_step = 0
        self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` updates: at an epoch's end, or by `train.save_every`."""
        every_steps, every_seconds = self._settings.save_steps, self._settings.save_seconds
        by_steps = every_steps is not None and step % every_steps == 0
        by_time = every_seconds is not None and time.monotonic() - self._saved_at >= every_seconds
        return self._plan.ends_epoch(step) or by_steps or self._any_process(by_time)

    def _any_process(self, wish: bool) -> bool:
        """Clocks differ between processes, and saving needs all of them."""
        if self._plan.processes == 1 or self._settings.save_seconds is None:
            return wish
        wishes = self._accelerator.gather(torch.tensor([wish], device=self._accelerator.device))
        assert isinstance(wishes, Tensor)
        return bool(wishes.any())

    def save(self, step: int, notes: dict[str, Any]) -> None:
        """Write the newest weights and a state to resume from, unless that is done for this step."""
        if self._saved_step == step:
            return
        # The weights first: once the last state is there, nothing would ever write them again.
        self.save_weights(self._run.weights, step)
        state = self._state.capture(step, notes)
        if self._accelerator.is_main_process:
            save_state(self._run.state, state, keep=self._settings.keep_states)
        self._saved_step, self._saved_at = step, time.monotonic()

    def save_weights(self, path: Path, step: int) -> None:
        """Write a self-describing `model.safetensors`; with `train.ema` the averaged weights."""
        tensors = self._state.weights()
        if self._accelerator.is_main_process:
            replace(self._weights, tensors=tensors, step=step).save(path)

    def restore(self) -> Resumed:
        """Take up the run's newest whole state, if it has one; what was logged after it is dropped.

        Raises:
            CheckpointError: no state is whole, or there are weights that no state goes with: beginning again
                would replace what has been learned.
        """
        state = newest_state(self._run.state, notify=self._notify)
        if state is None:
            resumed = Resumed(self._steps_of_finished_run(), None)
        else:
            self._state.restore(state, source=str(self._run.state))
            resumed = Resumed(state.step, state.notes)
            self._notify(f"resuming after step {state.step} of {self._plan.steps}")
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            set_aside_states_after(self._run.state, resumed.step)
            self._run.rewind(resumed.step)
        self._accelerator.wait_for_everyone()
        if resumed.step == self._plan.steps and not self._run.weights.is_file():
            self.save_weights(self._run.weights, resumed.step)
        return resumed

    def _steps_of_finished_run(self) -> int:
        """Without a state a run is new, or finished and its states were removed to save space."""
        if not self._run.weights.is_file():
            return 0
        step = read_weights(self._run.weights).step
        if step == self._plan.steps:
            return step
        raise CheckpointError(
            f"{self._run.weights}: weights of step {step} of {self._plan.steps}, but no state to go on from "
            f"in {self._run.state}; --overwrite begins again"
        )
