"""The networks that a run trains, saved to state files and restored from them to the bit.

A state (everest.train.saved_state) holds tensors by part and name. The parts of the run's model are
`model/…`, `optimizer/<parameter>/<moment>` and `ema/…`; any other network has `<name>/…`,
`<name>_optimizer/…` and `<name>_ema/…`. Random choices follow from the step, so no generator is saved.
"""

from __future__ import annotations

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
from everest.system.weights import Weights, load_tensors
from everest.system.weights_header import read_header
from everest.train.saved_state import SavedState, newest_state, set_aside, states_in

MODEL: Final = "model"  # the name of a run's first network
MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")  # of a parameter in AdamW
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
            CheckpointError: the tensors belong to another network; nothing is restored.
        """
        self.check(tensors)
        load_tensors(self.module, _part(tensors, self.name), source=source)
        if self.ema is not None:
            load_tensors(self.ema.module, _part(tensors, self._part("ema")), source=source)
        parameters = dict(self.module.named_parameters())
        for key, value in self.moments(tensors).items():
            name, moment = key.rsplit("/", 1)
            self.optimizer.state[parameters[name]][moment] = like_sharded(value, parameters[name])

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that the tensors belong to this network; restores nothing.

        All parameters have moments, or none has any: a step gives every parameter a gradient.

        Raises:
            CheckpointError: a name, a shape, a type, or a value that is not finite.
        """
        modules = {self.name: self.module}
        if self.ema is not None:
            modules[self._part("ema")] = self.ema.module
        for part, module in modules.items():
            _check_tensors(part, _part(tensors, part), module.state_dict())
        moments = self.moments(tensors)
        learning = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        expected = {
            f"{name}/{moment}": torch.zeros(()) if moment == "step" else parameter
            for name, parameter in self.module.named_parameters()
            if id(parameter) in learning
            for moment in MOMENTS
        }
        _check_tensors(self._part("optimizer"), moments, expected if moments else {})

    def moments(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The optimizer's moments among the tensors of a state, by `<parameter>/<moment>`."""
        return _part(tensors, self._part("optimizer"))

    def _part(self, kind: str) -> str:
        return kind if self.name == MODEL else f"{self.name}_{kind}"


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}


def _check_tensors(part: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the tensors have the names, shapes and types of others."""
    names = sorted(tensors.keys() ^ expected.keys())
    if names:
        kind = "missing" if names[0] in expected else "unexpected"
        raise CheckpointError(f"{len(names)} tensors missing or unexpected, first {part}/{names[0]} ({kind})")
    for name, tensor in tensors.items():
        like = expected[name]
        if (tensor.dtype, tensor.shape) != (like.dtype, like.shape):
            found, wanted = (f"{x.dtype} {tuple(x.shape)}" for x in (tensor, like))
            raise CheckpointError(f"{part}/{name} is {found}, not {wanted}")


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
        scaler = self._accelerator.scaler
        state = SavedState(
            step=step,
            tensors={key: value for network in self.networks for key, value in network.capture().items()},
            notes={**notes, "scaler": scaler.state_dict() if scaler else None},
        )
        if self._accelerator.is_main_process:
            state.save(self._run.state, keep=self._keep)
        # After the state: a run with weights and without any state cannot be resumed.
        self.save_weights(self._run.weights, step)
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
            EnvironmentProblem: a state cannot be read.
        """
        run, step = self._run, 0
        state = newest_state(run.state, notify=notify, check=self._check, accelerator=self._accelerator)
        if state is not None:
            step = state.step
            for network in self.networks:
                network.restore(state.tensors, source=str(run.state))
            if self._accelerator.scaler is not None and state.notes["scaler"]:
                self._accelerator.scaler.load_state_dict(state.notes["scaler"])
            is_done = step == steps
            notify(f"all {steps} steps are done" if is_done else f"resuming after step {step} of {steps}")
        elif run.weights.is_file():
            step = read_header(run.weights).step
            if step != steps:
                raise CheckpointError(
                    f"{run.weights}: weights of step {step} of {steps}, but no state to resume from "
                    f"in {run.state}; --overwrite starts the run again"
                )
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            for saved_step, path in states_in(run.state).items():
                if saved_step > step:  # damaged, and newer: it would push out intact ones
                    notify(f"{path.name} is kept as {set_aside(path).name}")
            run.rewind(step)
        self._accelerator.wait_for_everyone()
        if step == steps and not _has_weights(run.weights, step):  # killed between the last state and weights
            self.save_weights(run.weights, step)
        return step, state.notes if state is not None else None

    def _check(self, state: SavedState) -> None:
        """Raise CheckpointError for a state that no step of this run can have."""
        state.check_notes()
        for network in self.networks:
            network.check(state.tensors)
        if not self.networks[0].moments(state.tensors) and state.step > state.notes["skipped"]:
            raise CheckpointError("the tensors of the optimizer are missing")


def _has_weights(path: Path, step: int) -> bool:
    """Whether `model.safetensors` is there, intact as far as its header shows, and of this step."""
    try:
        return read_header(path).step == step
    except CheckpointError:
        return False
