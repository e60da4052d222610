"""What a run saves and resumes, alive: model, average, optimiser, loss scale, adversary.

When a run is saved, what is written, and what it goes on from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from everest.config.settings import TrainSettings
from everest.errors import CheckpointError
from everest.system.files import write_atomically
from everest.system.run_folder import RunFolder
from everest.system.sharding import full_tensor, like_sharded
from everest.system.weights import Weights, load_tensors, read_tensors
from everest.system.weights_header import FORMAT, read_header, read_metadata
from everest.train.adversary import Adversary
from everest.train.plan import StagePlan


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What an update changes. `model` and `optimizer` are as built, before anything wraps them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    scaler: torch.amp.GradScaler | None  # fp16
    adversary: Adversary | None = None

    @property
    def trained_model(self) -> nn.Module:
        """The module that is judged and handed on: the average where there is one."""
        return self.ema.module if self.ema is not None else self.model

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """That of the model, and that of the adversary where there is one."""
        return [self.optimizer, *([self.adversary.optimizer] if self.adversary is not None else [])]

    def weights(self) -> dict[str, Tensor]:
        """The tensors of `trained_model`, whole. All processes must ask."""
        return _whole(self.trained_model.state_dict())

    def capture(self, step: int, notes: dict[str, Any]) -> RunState:
        """All that an exact continuation needs, whole. All processes must ask."""
        return RunState(
            step=step,
            model=_whole(self.model.state_dict()),
            ema=self.ema.module.state_dict() if self.ema is not None else {},
            optimizer=_whole(optimizer_tensors(self.model, self.optimizer)),
            notes={**notes, "scaler": self.scaler.state_dict() if self.scaler else None},
            **self._of_adversary(),
        )

    def _of_adversary(self) -> dict[str, dict[str, Tensor]]:
        if self.adversary is None:
            return {}
        module, optimizer = self.adversary.discriminator, self.adversary.optimizer
        return {"adversary": module.state_dict(), "adversary_optimizer": optimizer_tensors(module, optimizer)}

    def restore(self, state: RunState, *, source: str) -> None:
        """The inverse of `capture`.

        Raises:
            CheckpointError: tensors of another model.
        """
        load_tensors(self.model, state.model, source=source)
        load_optimizer(self.model, self.optimizer, state.optimizer)
        if self.ema is not None:
            load_tensors(self.ema.module, state.ema, source=source)
        if self.adversary is not None:
            module = self.adversary.discriminator
            load_tensors(module, state.adversary, source=source)
            load_optimizer(module, self.adversary.optimizer, state.adversary_optimizer)
        if self.scaler is not None and state.notes["scaler"]:
            self.scaler.load_state_dict(state.notes["scaler"])


def _whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: full_tensor(tensor) for name, tensor in tensors.items()}


STATE_PATTERN = "step-*.safetensors"

_PARTS = ("model", "optimizer", "ema", "adversary", "adversary_optimizer")  # of a state that are tensors


@dataclass(frozen=True, kw_only=True)
class RunState:
    """All that an exact continuation needs. Random choices follow from the step: no generator is saved."""

    step: int  # updates done
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "<parameter>/<moment>"
    ema: dict[str, Tensor]  # averaged weights, empty without
    notes: dict[str, Any]  # plain values: counters, the scaler's state
    adversary: dict[str, Tensor] = field(default_factory=dict)  # weights of a discriminator, empty without
    adversary_optimizer: dict[str, Tensor] = field(default_factory=dict)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts under the names of their parameters."""
    return {
        f"{name}/{moment}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; each moment lies as its parameter does."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, moment = key.rsplit("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][moment] = like_sharded(value, parameter)


def save_state(folder: Path, state: RunState, *, keep: int) -> None:
    """Write `step-<n>.safetensors` and remove all but the newest `keep` states."""
    tensors = {
        f"{part}/{name}": value.detach().contiguous().cpu()
        for part in _PARTS
        for name, value in getattr(state, part).items()
    }
    header = {"format": f"{FORMAT}-state", "step": str(state.step), "notes": json.dumps(state.notes)}
    path = folder / f"step-{state.step:09d}.safetensors"
    write_atomically(path, lambda part: save_file(tensors, part, metadata=header))
    for old in _states(folder)[:-keep]:
        old.unlink()


def set_aside_states_after(folder: Path, step: int) -> None:
    """Rename states beyond `step` to *.damaged: they were passed over, and would outlive whole ones."""
    for path in _states(folder):
        if int(path.stem.removeprefix("step-")) > step:
            path.rename(path.with_suffix(".damaged"))


def _states(folder: Path) -> list[Path]:
    """The states of a run, oldest first."""
    return sorted(path for path in folder.glob(STATE_PATTERN) if path.stem.removeprefix("step-").isdecimal())


def newest_state(folder: Path, *, notify: Callable[[str], None]) -> RunState | None:
    """The newest whole state of a run, or None if it has none. A damaged one is named and passed over.

    Raises:
        CheckpointError: it has states, and none is whole.
        EnvironmentProblem: the disk or its permissions refuse to read one.
    """
    states = _states(folder)
    for path in reversed(states):
        try:
            header, tensors = read_metadata(path), read_tensors(path)
            step, notes = int(header["step"]), json.loads(header["notes"])
        except (CheckpointError, KeyError, ValueError) as error:
            notify(f"{path}: damaged, passed over ({error})")
            continue
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for name, value in tensors.items():
            part, rest = name.split("/", 1)
            parts[part][rest] = value
        return RunState(step=step, notes=notes, **parts)
    if states:
        raise CheckpointError(f"{folder}: none of its states is whole; --overwrite begins again")
    return None


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
        step = read_header(self._run.weights).step
        if step == self._plan.steps:
            return step
        raise CheckpointError(
            f"{self._run.weights}: weights of step {step} of {self._plan.steps}, but no state to go on from "
            f"in {self._run.state}; --overwrite begins again"
        )
