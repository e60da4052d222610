"""The networks that a run trains, saved to state files and restored from them to the bit.

`state/step-<n>.safetensors` holds tensors by part and name. The parts of the run's model are `model/…`,
`optimizer/<parameter>/<moment>` and `ema/…`; any other network has `<name>/…`, `<name>_optimizer/…` and
`<name>_ema/…`. Random choices follow from the step, so no generator is saved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from everest.errors import CheckpointError
from everest.system.run_folder import RunFolder
from everest.system.sharding import full_tensor, like_sharded
from everest.system.tensor_file import write_tensors
from everest.system.weights import Weights, load_tensors, read_tensors
from everest.system.weights_header import FORMAT, read_header, read_metadata

MODEL: Final = "model"  # the name of a run's first network
GRAD_NORM: Final = "grad_norm"  # in metrics.jsonl


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network that learns, and its optimizer: both as built, before anything wraps them.

    Args:
        name: of its tensors in a state.
        ema: an average of its weights.
        grad_norm: the name of its gradient norm in metrics.jsonl.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    name: str = MODEL
    ema: ModelEmaV3 | None = None
    grad_norm: str = GRAD_NORM

    def gradients(self) -> list[Tensor]:
        """The gradients of the parameters that have one."""
        return [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]

    def capture(self) -> dict[str, Tensor]:
        """Returns full tensors by part and name. All processes must call it."""
        moments = {
            f"{name}/{moment}": value
            for name, parameter in self.module.named_parameters()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }
        parts = {self.name: self.module.state_dict(), self._part("optimizer"): moments}
        if self.ema is not None:
            parts[self._part("ema")] = self.ema.module.state_dict()
        return {
            f"{part}/{name}": full_tensor(tensor)
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """The inverse of `capture`; parts of other networks are ignored.

        Raises:
            CheckpointError: the tensors belong to another network.
        """

        def part(name: str) -> dict[str, Tensor]:
            prefix = f"{name}/"
            return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}

        load_tensors(self.module, part(self.name), source=source)
        if self.ema is not None:
            load_tensors(self.ema.module, part(self._part("ema")), source=source)
        parameters = dict(self.module.named_parameters())
        for key, value in part(self._part("optimizer")).items():
            name, moment = key.rsplit("/", 1)
            self.optimizer.state[parameters[name]][moment] = like_sharded(value, parameters[name])

    def _part(self, kind: str) -> str:
        return kind if self.name == MODEL else f"{self.name}_{kind}"


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """The contents of a state file: all that an exact continuation needs."""

    step: int  # updates done
    tensors: dict[str, Tensor]  # by part and name
    notes: dict[str, Any]  # plain values: counters, the state of fp16's loss scale

    def save(self, folder: Path, *, keep: int) -> None:
        """Write `step-<n>.safetensors`, and remove all states but the newest `keep`."""
        header = {"format": f"{FORMAT}-state", "step": str(self.step), "notes": json.dumps(self.notes)}
        path = folder / f"step-{self.step:09d}.safetensors"
        write_tensors(path, self.tensors, metadata=header)
        for old in list(_states(folder).values())[:-keep]:
            old.unlink()


def _states(folder: Path) -> dict[int, Path]:
    """The states of a run by their steps, oldest first."""
    steps = {path: path.stem.removeprefix("step-") for path in sorted(folder.glob("step-*.safetensors"))}
    return {int(step): path for path, step in steps.items() if step.isdecimal()}


def newest_state(folder: Path, *, notify: Callable[[str], None]) -> SavedState | None:
    """Read the newest intact state of a run; None if it has no states. Damaged ones are reported and skipped.

    Raises:
        CheckpointError: there are states, and all are damaged.
        EnvironmentProblem: the disk or its permissions prevent reading one.
    """
    states = _states(folder)
    for path in reversed(states.values()):
        try:
            header, tensors = read_metadata(path), read_tensors(path)
            return SavedState(step=int(header["step"]), tensors=tensors, notes=json.loads(header["notes"]))
        except (CheckpointError, KeyError, ValueError) as error:
            notify(f"{path}: damaged, skipped ({error})")
    if states:
        raise CheckpointError(f"{folder}: all its states are damaged; --overwrite starts the run again")
    return None


class TrainState:
    """The networks of a run and fp16's loss scale, and the files that hold them.

    All processes must call its methods, at the same step.

    Args:
        networks: the run's model first.
        weights: `model.safetensors` without its tensors and step.
        keep: number of states to keep.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunFolder,
        networks: Sequence[Network],
        weights: Weights,
        *,
        keep: int,
    ) -> None:
        self.networks = networks
        self.saved_at = time.monotonic()  # seconds
        self._accelerator = accelerator
        self._run = run
        self._weights = weights
        self._keep = keep
        self._saved_step = 0

    @property
    def trained_model(self) -> nn.Module:
        """The module that is evaluated and written to `model.safetensors`: with `train.ema` the average."""
        model = self.networks[0]
        return model.module if model.ema is None else model.ema.module

    def save(self, step: int, notes: dict[str, Any]) -> None:
        """Write the newest weights and a state to resume from, unless that is done for this step."""
        if self._saved_step == step:
            return
        # The weights first: once the last state is there, nothing would ever write them again.
        self.save_weights(self._run.weights, step)
        scaler = self._accelerator.scaler
        state = SavedState(
            step=step,
            tensors={key: value for network in self.networks for key, value in network.capture().items()},
            notes={**notes, "scaler": scaler.state_dict() if scaler else None},
        )
        if self._accelerator.is_main_process:
            state.save(self._run.state, keep=self._keep)
        self._saved_step, self.saved_at = step, time.monotonic()

    def save_weights(self, path: Path, step: int) -> None:
        """Write the tensors of `trained_model`, with all that describes them."""
        tensors = {name: full_tensor(tensor) for name, tensor in self.trained_model.state_dict().items()}
        if self._accelerator.is_main_process:
            replace(self._weights, tensors=tensors, step=step).save(path)

    def restore(self, steps: int, *, notify: Callable[[str], None]) -> tuple[int, dict[str, Any] | None]:
        """Load the newest intact state of the run, if it has one, and drop the rows logged after it.

        Args:
            steps: of the whole run.
        Returns:
            The updates done, and the notes as given to `save`: None for a new run, and for a finished one
            whose states were removed to save space.
        Raises:
            CheckpointError: all states are damaged, or there are weights without a state: starting again
                would replace what has been learned.
        """
        run, step = self._run, 0
        state = newest_state(run.state, notify=notify)
        if state is not None:
            step = state.step
            for network in self.networks:
                network.restore(state.tensors, source=str(run.state))
            if self._accelerator.scaler is not None and state.notes["scaler"]:
                self._accelerator.scaler.load_state_dict(state.notes["scaler"])
            notify(f"resuming after step {step} of {steps}")
        elif run.weights.is_file():
            step = read_header(run.weights).step
            if step != steps:
                raise CheckpointError(
                    f"{run.weights}: weights of step {step} of {steps}, but no state to resume from "
                    f"in {run.state}; --overwrite starts the run again"
                )
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            for saved_step, path in _states(run.state).items():
                if saved_step > step:  # damaged, and newer: it would push out intact ones
                    path.rename(path.with_suffix(".damaged"))
            run.rewind(step)
        self._accelerator.wait_for_everyone()
        if step == steps and not run.weights.is_file():
            self.save_weights(run.weights, step)
        return step, state.notes if state is not None else None
