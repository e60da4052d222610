"""A training step in its own process, so that process settings do not affect other contenders."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Literal

import torch
from measuring import Times, in_turns
from steps import Case, Pass, clips_for, our_pass, plain_pass, transformers_pass, transformers_videomae
from torch import Tensor, nn

from everest.engine.network import make_optimizer, parameter_groups, set_lr
from everest.profiling.profile import StageName
from everest.system.compute import configure_cpu

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
            configure_cpu()
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
    with _processes(contenders) as pipes:
        losses = {name: pipe.recv() for name, pipe in pipes.items()}
        _check(contenders, losses)
        return in_turns({name: partial(_ask, pipe) for name, pipe in pipes.items()}, rounds=rounds)


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


def _ask(pipe: Connection, number: int) -> float:
    pipe.send(True)
    return pipe.recv()


@contextmanager
def _processes(contenders: Mapping[str, Contender]) -> Iterator[dict[str, Connection]]:
    """A process for each; it first sends its loss."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    started = []
    try:
        for name, contender in contenders.items():
            pipes[name], end = context.Pipe()
            started.append(context.Process(target=_serve, args=(contender, end), daemon=True))
            started[-1].start()
            end.close()  # else a process that dies would be waited for
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in started:
            process.join()


def _serve(contender: Contender, pipe: Connection) -> None:
    """Run a step for each request and answer with its CPU seconds, until the pipe is closed."""
    torch.set_num_threads(1)
    loss, step = contender.prepare()
    pipe.send(loss)
    with suppress(EOFError):
        while pipe.recv():
            began = time.process_time()
            step()
            pipe.send(time.process_time() - began)
