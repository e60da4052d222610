"""A call of the library that trains leaves the process as it found it."""

from __future__ import annotations

import multiprocessing
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch._functorch import config as functorch_config


@contextmanager
def restored_process() -> Iterator[None]:
    """Restore at the end of the block what a stage sets up in this process, also after an error.

    That is the state of random generators, the precision of float32 products, the number of threads, the
    start method of processes, filters of warnings, the environment, settings of torch's compiler, and the
    state that all Accelerators of a process share: one of the caller would otherwise report the precision and
    the device of the stage. What stays is the process group of a run of several processes, that glibc keeps
    freed memory, and the variables of OpenMP that scikit-learn sets for the life of a process (KMP_…).
    """
    from torch._dynamo import config as dynamo_config  # here: it imports the compiler, as any optimizer does

    shared_states = [class_._shared_state for class_ in (PartialState, AcceleratorState, GradientState)]
    with ExitStack() as stack:
        for mapping in (os.environ, *shared_states):
            stack.callback(_refill, mapping, dict(mapping))
        budget, limit = functorch_config.activation_memory_budget, dynamo_config.recompile_limit
        stack.enter_context(functorch_config.patch(activation_memory_budget=budget))
        stack.enter_context(dynamo_config.patch(recompile_limit=limit))
        chosen = multiprocessing.get_start_method(allow_none=True)  # None: the program may choose it later
        stack.callback(multiprocessing.set_start_method, chosen, force=True)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(_float32_products())
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(warnings.catch_warnings())
        yield


def _refill(mapping: Any, saved: dict[str, Any]) -> None:
    """Give a mapping that others hold its saved items again, and no others but those of OpenMP."""
    for key in [key for key in mapping if key not in saved and not key.startswith("KMP_")]:
        del mapping[key]
    mapping.update(saved)


def _float32_products() -> Callable[[], None]:
    """Return a function that restores the present precision of float32 products.

    torch has two settings of it. The older one, for all devices, cannot be read after the newer one, for each
    device, has been used.
    """
    precision = "highest"  # the default
    with suppress(RuntimeError):
        precision = torch.get_float32_matmul_precision()
    products = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    of_device = [(each, each.fp32_precision) for each in products if hasattr(each, "fp32_precision")]

    def restore() -> None:
        torch.set_float32_matmul_precision(precision)
        for each, value in of_device:
            each.fp32_precision = value

    return restore
