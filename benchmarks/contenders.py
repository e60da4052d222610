"""A training step in its own process, so that process settings do not affect other contenders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Literal

import torch
from measuring import Times, in_turns
from steps import Case, Pass, clips_for, our_pass, plain_pass, transformers_pass, transformers_videomae
from torch import Tensor, nn

from everest.engine.network import make_optimizer, parameter_groups
from everest.engine.step import set_lr
from everest.profiling.profile import StageName
from everest.system.processes import TRAINER_KEPT_BYTES, keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """The implementation and the model of a step.

    Args:
        recipe: k400 is EVEREST, videomae-k400 VideoMAE; transformers has the latter only.
        tuned: with the CPU settings of everest; otherwise with PyTorch defaults.
    """

    code: Literal["ours", "plain", "transformers"]
    backbone: str
    dtype: str
    recipe: str = "k400"
    stage: StageName = "pretrain"
    tuned: bool = False

    def prepare(self) -> tuple[float, Callable[[], None]]:
        """The loss of fresh weights and a step of one clip: forward, backward, AdamW.

        The learning rate is small, so that the weights remain close to their initialization. The model of
        transformers has the fused optimizer of everest, so that only models are compared. The optimizer of
        the plain implementation is a loop.
        """
        if self.tuned:
            keep_freed_memory(TRAINER_KEPT_BYTES)
        model, clips = self._model()
        run = self._pass(model)
        optimizer = _looped(model) if self.code == "plain" else _fused(model)

        def step() -> None:
            run(clips).backward()
            optimizer.step()
            optimizer.zero_grad()

        with torch.no_grad():
            return run(clips).item(), step

    def _model(self) -> tuple[nn.Module, Tensor]:
        everest_model = Case(self.recipe, self.stage, (f"model.backbone={self.backbone}",)).build()
        model = transformers_videomae(self.backbone) if self.code == "transformers" else everest_model
        return model, clips_for(everest_model, 1)

    def _pass(self, model: nn.Module) -> Pass:
        passes = {"ours": our_pass, "plain": plain_pass, "transformers": transformers_pass}
        return passes[self.code](model, DTYPES[self.dtype])


def _fused(model: nn.Module) -> torch.optim.AdamW:
    groups = parameter_groups(model, weight_decay=0.05)
    optimizer = make_optimizer(groups, betas=(0.9, 0.95))
    set_lr(optimizer, 1e-8)
    return optimizer


def _looped(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-8, weight_decay=0.05, foreach=False, fused=False)


def step_times(contenders: Mapping[str, Contender], *, rounds: int) -> dict[str, Times]:
    """CPU seconds of one thread for a step of each, in turns.

    Raises:
        SystemExit: everest and the plain implementation have different losses, so a step is wrong.
    """
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            for name in contenders
        }
        prepared = {name: pools[name].submit(_prepare, one) for name, one in contenders.items()}
        _check(contenders, {name: loss.result() for name, loss in prepared.items()})
        return in_turns({name: partial(_seconds_in, pool) for name, pool in pools.items()}, rounds=rounds)


_step: list[Callable[[], None]] = []  # of the contender of this process


def _prepare(contender: Contender) -> float:
    """Make the step of this process. Returns its first loss."""
    torch.set_num_threads(1)
    loss, step = contender.prepare()
    _step.append(step)
    return loss


def _seconds() -> float:
    began = time.process_time()
    _step[0]()
    return time.process_time() - began


def _seconds_in(pool: ProcessPoolExecutor, number: int) -> float:
    return pool.submit(_seconds).result()


def _check(contenders: Mapping[str, Contender], losses: Mapping[str, float]) -> None:
    """The everest and plain contenders of one recipe have the same loss, within their precision."""
    by_recipe: dict[str, list[str]] = {}
    for name, one in contenders.items():
        if one.code != "transformers":
            by_recipe.setdefault(one.recipe, []).append(name)
    for first, *others in by_recipe.values():
        for name in others:
            lower = "bf16" in (contenders[first].dtype, contenders[name].dtype)
            if abs(losses[name] - losses[first]) > (1e-2 if lower else 1e-5) * abs(losses[first]):
                raise SystemExit(f"the losses differ: {first} {losses[first]}, {name} {losses[name]}")
