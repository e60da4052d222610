"""Trains a model without a run, for measurements."""

from __future__ import annotations

from collections.abc import Mapping

from accelerate import Accelerator
from torch import Tensor, nn

from everest.config.settings import TrainedSection, TrainSettings
from everest.engine.network import make_network, prepare_model
from everest.engine.step import PassLosses, StepRecord, UpdateGuard, update_networks


class PlainTraining:
    """Trains a model in steps of one pass, by the same updates as in a run.

    Attributes:
        model: as the caller computes its loss: compiled, in the precision of `accelerator`.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, section: TrainedSection, settings: TrainSettings
    ) -> None:
        self.network = make_network(model, section, settings, accelerator)
        self.model = prepare_model(accelerator, model, settings)
        self._accelerator, self._clip_grad = accelerator, settings.clip_grad
        self._guard = UpdateGuard(scaled=accelerator.scaler is not None)

    def step(self, loss: Tensor, metrics: Mapping[str, Tensor] = {}) -> None:
        """Compute the gradient of a loss, and update the weights."""
        accelerator, record = self._accelerator, StepRecord(index=0)
        record.add(PassLosses(loss, metrics=metrics), passes=1)
        accelerator.backward(loss)
        update_networks(accelerator, [self.network], record, self._guard, clip_grad=self._clip_grad)
