"""The private interfaces of libraries that everest uses, each with its reason. No other file uses one.

tests/everest/system/test_private_apis.py has a test of each, so that a new release that breaks one is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

# The memory of a model is counted on tensors without values, by each call of an operator; torch documents
# these classes, but has no public names for them.
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves

Function = TypeVar("Function", bound=Callable[..., Any])


def never_compile(function: Function) -> Function:
    """Keep a function out of graphs, as `torch.compiler.disable`, which imports the compiler for a second."""
    return torch._disable_dynamo(function)  # type: ignore[return-value]


def compile_as_constant(function: Function) -> Function:
    """Let a graph contain the result of a function, as `torch.compiler.assume_constant_result`.

    That one imports the compiler, which takes a second.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def set_compiler_limits(*, memory_budget: float, graphs: int) -> None:
    """Set the fraction of activations that a whole graph keeps, and how many graphs a function may have.

    torch has no other way to set them.
    """
    from torch._dynamo import config as dynamo_config  # here: it imports the compiler, for a second

    functorch_config.activation_memory_budget = memory_budget
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, graphs)


@contextmanager
def keep_compiler_limits() -> Iterator[None]:
    """Restore what `set_compiler_limits` changes at the end of the block."""
    from torch._dynamo import config as dynamo_config

    budget, graphs = functorch_config.activation_memory_budget, dynamo_config.recompile_limit
    with (
        functorch_config.patch(activation_memory_budget=budget),
        dynamo_config.patch(recompile_limit=graphs),
    ):
        yield


def is_compiler_error(error: BaseException) -> bool:
    """Whether the compiler raised an error; the classes of its errors have no public names."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def skip_update(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Let a fused AdamW change neither weights nor moments in its next step if `skipped` is 1 on the device.

    torch's GradScaler sets the same attribute; with another optimizer, the host would have to wait.
    """
    setattr(optimizer, "found_inf", skipped)  # noqa: B010 (not declared in torch's types)


def abort_process_group() -> None:
    """End the collectives of this process: NCCL's `destroy_process_group` waits for the other processes."""
    from torch.distributed.distributed_c10d import _abort_process_group

    _abort_process_group()


def reset_accelerate(*, keep_processes: bool) -> None:
    """Let the next Accelerator choose its precision and device anew, as a notebook's second run may.

    Args:
        keep_processes: keep the connections to the other processes, which are made only once.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=not keep_processes)


def accelerate_states() -> list[dict[str, Any]]:
    """The values that all Accelerators of this process share: a stage restores its caller's."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    return [class_._shared_state for class_ in (PartialState, AcceleratorState, GradientState)]
