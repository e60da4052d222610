"""What a run saves and resumes, alive: model, average, optimiser, loss scale, adversary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from everest.adversary import Adversary
from everest.checkpoint import RunState, load_optimizer, load_tensors, optimizer_tensors
from everest.sharding import whole


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
    return {name: whole(tensor) for name, tensor in tensors.items()}
