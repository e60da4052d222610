"""The networks that a run trains, saved to state files and restored from them to the bit.

A state (everest.engine.saved_state) holds tensors by part and name. The parts of the run's model are
`model/…`, `optimizer/<parameter>/<moment>` and `ema/…`; any other network has `<name>/…`,
`<name>_optimizer/…` and `<name>_ema/…`. Random choices follow from the step, so no generator is saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from everest.engine.network import EMA, MODEL, Network, part_of
from everest.engine.saved_state import SavedState, newest_state, set_aside, states_in
from everest.errors import CheckpointError
from everest.models.lora import merged
from everest.system.compute import HostCopy
from everest.system.run_folder import ENDED, RunFolder
from everest.system.weights import Weights, full_tensor
from everest.system.weights_header import read_header


class TrainState:
    """The networks of a run and fp16's loss scale, and the files that hold them.

    All processes must call its methods, at the same step.

    Args:
        networks: the run's model first.
        weights: `model.safetensors` without its tensors and step.
        keep: number of states to keep.
        background: write the files of `save` while the run continues; `finish` waits for them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunFolder,
        networks: Sequence[Network],
        weights: Weights,
        *,
        keep: int,
        background: bool = False,
    ) -> None:
        self.networks = networks
        self.saved_at = time.monotonic()  # seconds
        self._accelerator = accelerator
        self._run = run
        self._weights = weights
        self._keep = keep
        self._saved_step = 0
        self._writer = ThreadPoolExecutor(max_workers=1) if background else None
        self._writing: Future[None] | None = None

    @property
    def trained_model(self) -> nn.Module:
        """The module that is evaluated and written to `model.safetensors`: with `train.ema` the average."""
        model = self.networks[0]
        return model.module if model.ema is None else model.ema.module

    def save(self, step: int, notes: dict[str, Any]) -> None:
        """Write the newest weights and a state to resume from, unless that is done for this step."""
        if self._saved_step == step:
            return
        self.finish()
        scaler = self._accelerator.scaler
        tensors = {key: value for network in self.networks for key, value in network.capture().items()}
        copies = HostCopy(tensors, keep=self._writer is not None)
        notes = {**notes, "scaler": scaler.state_dict() if scaler else None}
        trained = MODEL if self.networks[0].ema is None else EMA

        def write() -> None:
            state = SavedState(step=step, tensors=copies.read(), notes=notes)
            state.save(self._run.state, keep=self._keep)
            # After the state: a run with weights and without any state cannot be resumed.
            self._write_weights(self._run.weights, part_of(state.tensors, trained), step)

        if self._accelerator.is_main_process:
            if self._writer is None:
                write()
            else:
                self._writing = self._writer.submit(write)
        self._saved_step, self.saved_at = step, time.monotonic()

    def finish(self) -> None:
        """Wait until the files of the last `save` are written.

        Raises:
            EnvironmentProblem: the disk or its permissions prevented it.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def save_weights(self, path: Path, step: int, *, settings: Mapping[str, Any] | None = None) -> None:
        """Write the tensors of `trained_model`, with all that describes them.

        Args:
            settings: of these weights only, in addition to the run's.
        """
        self.finish()  # the weights of a step are never there without its state
        tensors = {name: full_tensor(tensor) for name, tensor in self.trained_model.state_dict().items()}
        if self._accelerator.is_main_process:
            self._write_weights(path, HostCopy(tensors).read(), step, settings)

    def _write_weights(
        self, path: Path, tensors: dict[str, Tensor], step: int, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Write the tensors of the model; adapters are added to their matrices, and only a state has them."""
        tensors = merged(self.networks[0].module, tensors)
        described = {**self._weights.settings, **(settings or {})}
        replace(self._weights, tensors=tensors, step=step, settings=described).save(path)

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
        last = next((row["step"] for row in run.rows() if ENDED in row), steps)
        state = newest_state(run.state, notify=notify, check=self._check, accelerator=self._accelerator)
        if state is not None:
            step = state.step
            for network in self.networks:
                network.restore(state.tensors, source=str(run.state))
            if self._accelerator.scaler is not None and state.notes["scaler"]:
                self._accelerator.scaler.load_state_dict(state.notes["scaler"])
            notify(f"all {last} steps are done" if step == last else f"resuming after step {step} of {steps}")
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
                    notify(f"{path.name} is kept as {set_aside(path).name}")
            run.rewind(step)
        self._accelerator.wait_for_everyone()
        if step == last and not _has_weights(run.weights, step):  # killed between the last state and weights
            self.save_weights(run.weights, step)
        return step, state.notes if state is not None else None

    def _check(self, state: SavedState) -> None:
        """Raise CheckpointError for a state of another run."""
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
