"""State files with a checksum: all that an exact continuation of a run needs.

`state/step-<n>.safetensors` holds tensors by part and name, and in its header the step, the notes and a
SHA-256 of all of these. The parts of the run's model are `model/…`, `optimizer/<parameter>/<moment>` and
`ema/…`; any other network has `<name>/…`, `<name>_optimizer/…` and `<name>_ema/…`. Random choices follow from
the step, so no generator is saved. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from everest.engine.context import RunContext
from everest.engine.step import MODEL_PART, TrainedNetwork
from everest.errors import CheckpointError, EnvironmentProblem
from everest.models.partial import merge_adapters
from everest.system.compute import HostCopy
from everest.system.text import json_text, parse_json
from everest.system.weights import (
    Weights,
    read_tensors,
    require_matching,
    state_hash,
    write_tensors,
)
from everest.system.weights_header import FORMAT, read_header, read_metadata

DAMAGED: Final = ".damaged"  # suffix of a state that is set aside
KEPT_STATES: Final = 2  # the newest one may be damaged
STATE_FORMAT: Final = f"{FORMAT}-state"
EMA_PART: Final = "ema"
OPTIMIZER_PART: Final = "optimizer"
MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")  # what AdamW stores for a parameter


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """The contents of a state file."""

    step: int  # updates done
    tensors: dict[str, Tensor]  # tensors by part and name
    notes: dict[str, Any]  # plain values: the counters of a run, the state of fp16's loss scale

    def save(self, folder: Path) -> None:
        """Write `step-<n>.safetensors`, and remove all states but the newest `KEPT_STATES`."""
        header = {"format": STATE_FORMAT, "step": str(self.step), "notes": json_text(self.notes)}
        header["sha256"] = _checksum(header, self.tensors)
        write_tensors(folder / f"step-{self.step:09d}.safetensors", self.tensors, metadata=header)
        for old in list(states_in(folder).values())[:-KEPT_STATES]:
            old.unlink()

    @classmethod
    def read(cls, path: Path) -> SavedState:
        """Read what `save` wrote, and verify its checksum."""
        header, tensors = read_metadata(path), read_tensors(path)
        checksum = header.pop("sha256", None)
        is_state = header.keys() == {"format", "step", "notes"} and header["format"] == STATE_FORMAT
        is_state = is_state and path.name == f"step-{header['step']:0>9}.safetensors"
        if not is_state or checksum != _checksum(header, tensors):
            raise CheckpointError("checksum mismatch, or not the state of the step in its name")
        return cls(step=int(header["step"]), tensors=tensors, notes=parse_json(header["notes"]))


def _checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the header's texts and of all tensors with their names, types and shapes."""
    text = json_text([header["format"], header["step"], header["notes"], state_hash(tensors)])
    return hashlib.sha256(text.encode()).hexdigest()


def states_in(folder: Path) -> dict[int, Path]:
    """The states of a run by their steps, oldest first. Files with other names are ignored."""
    return {int(path.stem[-9:]): path for path in sorted(folder.glob(f"step-{'[0-9]' * 9}.safetensors"))}


def tensors_of_part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a state's part `name`, by their names in it."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}


def _weights_of(network: TrainedNetwork) -> dict[str, Tensor]:
    """The weights and the averaged weights of a network, by `<part>/<name>`."""
    modules = {network.name: network.module}
    if network.ema is not None:
        modules[network.prefixed(EMA_PART)] = network.ema.module
    return {f"{part}/{key}": x for part, module in modules.items() for key, x in module.state_dict().items()}


def capture_network(network: TrainedNetwork) -> dict[str, Tensor]:
    """The weights, the averaged weights and the moments of a network, by `<part>/<name>`."""
    prefix, state = network.prefixed(OPTIMIZER_PART), network.optimizer.state
    return _weights_of(network) | {
        f"{prefix}/{name}/{moment}": value
        for name, parameter in network.module.named_parameters()
        for moment, value in state.get(parameter, {}).items()
    }


def restore_network(network: TrainedNetwork, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `capture_network`, for tensors that `check_network` accepts; others are ignored."""
    with torch.no_grad():
        for key, weight in _weights_of(network).items():
            weight.copy_(tensors[key])
    parameters = dict(network.module.named_parameters())
    for key, value in tensors_of_part(tensors, network.prefixed(OPTIMIZER_PART)).items():
        name, moment = key.rsplit("/", 1)
        network.optimizer.state[parameters[name]][moment] = value.to(parameters[name].device, copy=True)


def check_network(network: TrainedNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Check that all names, shapes and types are those of the network, else CheckpointError.

    All parameters have moments, or none has any: a step gives every parameter a gradient.
    """
    expected, prefix = _weights_of(network), network.prefixed(OPTIMIZER_PART)
    parts = {key.partition("/")[0] for key in expected} | {prefix}
    own = {key: tensor for key, tensor in tensors.items() if key.partition("/")[0] in parts}
    if tensors_of_part(own, prefix):
        learning = {id(weight) for group in network.optimizer.param_groups for weight in group["params"]}
        expected |= {
            f"{prefix}/{name}/{moment}": torch.zeros(()) if moment == "step" else parameter
            for name, parameter in network.module.named_parameters()
            if id(parameter) in learning
            for moment in MOMENTS
        }
    require_matching(expected, own, source=network.name)


class TrainState:
    """Saves and restores the networks of a run and fp16's loss scale.

    All processes must call its methods, at the same step.

    Args:
        networks: the run's model first.
        header: the header of `model.safetensors`; tensors and step are added when it is written.
    """

    def __init__(self, context: RunContext, networks: Sequence[TrainedNetwork], header: Weights) -> None:
        self._networks = networks
        self._accelerator = context.accelerator
        self._run = context.run_folder
        self._notify = context.notice
        self.header = header
        self._saved_step = 0
        # On a GPU files are written while it computes the next steps; `finish` waits for them.
        self._writer = ThreadPoolExecutor(max_workers=1) if context.overlaps else None
        self._writing: Future[None] | None = None

    def save(self, step: int, notes: dict[str, Any]) -> None:
        """Write the newest weights and a state to resume from, unless that is done for this step."""
        if self._saved_step == step:
            return
        self.finish()
        self._saved_step = step
        if not self._accelerator.is_main_process:
            return
        scaler = self._accelerator.scaler
        tensors = {key: x for network in self._networks for key, x in capture_network(network).items()}
        copies = HostCopy(tensors, keep=self._writer is not None)
        notes = {**notes, "scaler": scaler.state_dict() if scaler else None}
        trained = MODEL_PART if self._networks[0].ema is None else EMA_PART

        def write() -> None:
            state = SavedState(step=step, tensors=copies.read(), notes=notes)
            state.save(self._run.state)
            # After the state: a run with weights and without any state cannot be resumed.
            self._write_weights(self._run.weights, tensors_of_part(state.tensors, trained), step, {})

        self._writing = self._writer.submit(write) if self._writer is not None else write()

    def finish(self) -> None:
        """Wait until the files of the last `save` are written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def save_weights(self, path: Path, step: int, settings: Mapping[str, Any]) -> None:
        """Write the tensors of the trained model; `settings` are added to those in the header."""
        self.finish()  # the weights of a step are never there without its state
        if self._accelerator.is_main_process:
            tensors = HostCopy(self._networks[0].evaluated.state_dict()).read()
            self._write_weights(path, tensors, step, settings)

    def _write_weights(
        self, path: Path, tensors: dict[str, Tensor], step: int, settings: Mapping[str, Any]
    ) -> None:
        """Write the tensors of the model; adapters are added to their matrices, and only a state has them."""
        tensors = merge_adapters(self._networks[0].module, tensors)
        settings = {**self.header.settings, **settings}
        replace(self.header, tensors=tensors, step=step, settings=settings).save(path)

    def restore(self, steps: int) -> tuple[int, dict[str, Any] | None]:
        """Load the newest intact state of a run of `steps` steps, if it has one, and drop the rows after it.

        Returns:
            The updates done, and the notes as given to `save`: None for a new run, and for a finished one
            whose states were removed to save space.
        """
        run, state, step = self._run, self._newest(), 0
        last = run.read_environment().plan.finished or steps
        if state is not None:
            step = state.step
            for network in self._networks:
                restore_network(network, state.tensors)
            if self._accelerator.scaler is not None and state.notes["scaler"]:
                self._accelerator.scaler.load_state_dict(state.notes["scaler"])
            resumes = f"resuming after step {step} of {steps}"
            self._notify(f"all {last} steps are done" if step == last else resumes)
        elif run.weights.is_file():
            step = read_header(run.weights).step
            if step != last:
                raise CheckpointError(
                    f"{run.weights}: weights of step {step} of {steps}, but no state to resume from "
                    f"in {run.state}; --overwrite starts the run again"
                )
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            for saved_step, path in states_in(run.state).items():
                if saved_step > step:  # damaged, and newer: it would push out intact ones
                    self._notify(f"{path.name} is kept as {path.replace(path.with_suffix(DAMAGED)).name}")
            run.rewind(step)
        self._accelerator.wait_for_everyone()
        if step == last:
            written = None
            with suppress(CheckpointError):
                written = read_header(run.weights).step
            if written != step:  # killed between the last state and weights
                self.save_weights(run.weights, step, {})
        return step, None if state is None else state.notes

    def _newest(self) -> SavedState | None:
        """Read the newest intact state, if there are states. Damaged ones are reported and skipped.

        A state is intact if all processes can read it.
        """
        folder = self._run.state
        (paths,) = broadcast_object_list([[*states_in(folder).values()]])  # those that the main process sees
        first_problem = ""
        for path in reversed(paths):
            state = problem = None
            try:
                if not path.exists() and not path.is_symlink():
                    raise EnvironmentProblem(
                        f"{path}: not visible to every process; put the run folder on shared storage"
                    )
                state = SavedState.read(path)
                for network in self._networks:  # raises if the state is of another run
                    check_network(network, state.tensors)
                has_moments = tensors_of_part(state.tensors, self._networks[0].prefixed(OPTIMIZER_PART))
                if not has_moments and state.step > state.notes["skipped"]:
                    raise CheckpointError("the tensors of the optimizer are missing")
            except (CheckpointError, EnvironmentProblem) as error:
                problem = error
            problems = [error for error in gather_object([problem]) if error is not None]
            for error in problems:
                if isinstance(error, EnvironmentProblem):
                    raise error
            if not problems:
                return state
            reason = str(problems[0]).removeprefix(f"{path}: ")
            self._notify(f"{path}: damaged, skipped ({reason})")
            first_problem = first_problem or f" ({path.name}: {reason})"
        if paths:
            raise CheckpointError(
                f"{folder}: all saved states are damaged{first_problem}; restore a copy of one, or start "
                "over with --overwrite"
            )
        return None
