"""A call of the library leaves the process as it found it.

The test runs this file as a program, because the state of the tests' own process must not change either.
"""

import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import everest

FEW = [
    *("data.frames=4", "data.size=32", "model.backbone=vit-tiny", "model.tubelet=[2,8,8]", "model.depth=1"),
    *("finetune.steps=2", "finetune.warmup_steps=1", "finetune.batch_size=4", "train.workers=0"),
]
# What Slurm gives each of several tasks: they are no run of several processes until a stage starts.
SLURM = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7"}
Calls = dict[str, Callable[[], object]]


class Interrupted(Exception):
    """Raised by the caller's own function amid a call."""


def own_state() -> Accelerator:
    """Give this process settings that no call has chosen, as programs and notebooks do."""
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(3)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    warnings.filterwarnings("error", "of the caller")
    sys.excepthook = lambda *_: None
    logging.getLogger().addHandler(logging.NullHandler())
    return accelerator


def state_of(accelerator: Accelerator) -> dict[str, Any]:
    """All that a call might change and that others in the process depend on."""
    from torch._dynamo import config as dynamo_config
    from torch._functorch import config as functorch_config

    with accelerator.autocast():
        autocast = (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    devices = (cuda.matmul, cudnn, getattr(torch.backends.mkldnn, "matmul", None))
    loggers = [logging.getLogger(name) for name in (None, "everest", "accelerate", "torch")]
    return {
        "accelerator": (accelerator.mixed_precision, str(accelerator.device), autocast),
        "Accelerate": [dict(of._shared_state) for of in (PartialState, AcceleratorState, GradientState)],
        "products": (torch.get_float32_matmul_precision(), cuda.matmul.allow_tf32, cudnn.allow_tf32),
        "products by device": [getattr(each, "fp32_precision", None) for each in devices],
        "cuDNN": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "threads": [each.name for each in threading.enumerate() if not each.daemon],  # readers may still end
        "children": [child.name for child in multiprocessing.active_children()],
        "default": (torch.get_default_dtype(), torch.get_default_device()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "compiler": (functorch_config.activation_memory_budget, dynamo_config.recompile_limit),
        "processes": multiprocessing.get_start_method(allow_none=True),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "numpy errors": np.geterr(),
        "torch": torch.get_rng_state().tolist(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
        "loggers": [(list(each.handlers), each.level, each.disabled) for each in loggers],
        "logging": logging.root.manager.disable,
        "environment": {key: os.environ[key] for key in os.environ if not key.startswith("KMP_")},
        "folder": Path.cwd(),
        "umask": _umask(),
        "path": list(sys.path),
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def unchanged(name: str, accelerator: Accelerator, *, but: tuple[str, ...] = ()) -> Iterator[None]:
    """Compare the state of the process after the block with that before; prints what a call has changed."""
    before = state_of(accelerator)
    yield
    after = state_of(accelerator)
    for key, value in before.items():
        if key not in but and after[key] != value:
            sys.stdout.write(f"{name} changed {key}: {str(value)[:300]} -> {str(after[key])[:300]}\n")


def interrupt(*_: object) -> None:
    raise Interrupted


def expect_interrupt(call: Callable[[], object]) -> None:
    with pytest.raises(Interrupted):
        call()


def calls_without_training(clip_files: Path, folder: Path) -> Calls:
    """A call of each function of the library that trains nothing."""
    from tiny_models import save_model, tiny

    classifier = tiny("classifier", num_classes=2)
    checkpoint = save_model(folder / "tiny.safetensors", classifier.spec, classifier, classes=("a", "b"))
    video, listed = clip_files / "clip0.mp4", clip_files / "train.csv"
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    test: Any = {"data": clip_files, "test": "train.csv"}
    return {
        "create_model": lambda: tiny("classifier", num_classes=2),
        "load_model": lambda: everest.load_model(checkpoint),
        "load_recipe": lambda: everest.load_recipe("ucf101"),
        "read_frames": lambda: everest.read_frames(str(video), [0, 3]),
        "read_clip": lambda: everest.read_clip(video, frames=4, size=32),
        "normalize": lambda: everest.normalize(torch.zeros(3, 2, 4, 4, dtype=torch.uint8)),
        "select_tokens": lambda: everest.select_tokens(torch.linspace(0, 1, 24576).view(1, 3, 8, 32, 32)),
        "TokenSelection": lambda: everest.TokenSelection(tokens, tokens),
        "parameter_groups": lambda: everest.parameter_groups(classifier, weight_decay=0.05),
        "predict": lambda: everest.predict(classifier, listed),
        "predict by workers": lambda: everest.predict(classifier, listed, workers=2, precision="bf16"),
        "timeline": lambda: everest.timeline(classifier, video, window=0.5),
        "extract": lambda: everest.extract(classifier, listed),
        "evaluate": lambda: everest.evaluate(classifier, **test, workers=0, page=folder / "page"),
        "predict, interrupted": lambda: expect_interrupt(
            lambda: everest.predict(classifier, listed, emit=interrupt)
        ),
    }


def calls_with_training(clip_files: Path, folder: Path) -> Calls:
    """A call of each function of the library that trains, and one that ends with an error amid the steps."""
    from small_runs import small_recipe

    recipe = small_recipe(folder, clip_files)
    mine = folder / "mine"
    for name in ("up", "down"):
        (mine / name).mkdir(parents=True)
        for number in range(4):
            (mine / name / f"{number}.mp4").symlink_to(clip_files / f"clip{number}.mp4")
    scratch: Any = {"init": None, "cpu": True}
    return {
        "pretrain": lambda: everest.pretrain(recipe, output=folder / "pretrain", **scratch),
        "finetune": lambda: everest.finetune(recipe, output=folder / "finetune", **scratch),
        "train": lambda: everest.train(mine, output=folder / "project", overrides=FEW),
        "pretrain, interrupted": lambda: expect_interrupt(
            lambda: everest.pretrain(recipe, output=folder / "other", emit=interrupt, **scratch)
        ),
    }


def main(clip_files: Path, folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    training, others = (make(clip_files, folder) for make in (calls_with_training, calls_without_training))
    accelerator = own_state()
    for calls in (others, training):  # training may leave more behind
        os.environ.update(SLURM if calls is others else {})
        for name, call in calls.items():
            with unchanged(name, accelerator, but=("torch",) if name == "create_model" else ()):
                call()
        for name in SLURM:
            os.environ.pop(name, None)
    for name in everest.__all__:
        if not isinstance(getattr(everest, name), ModuleType) and name not in training | others:
            sys.stdout.write(f"{name} is not called\n")


def test_a_call_leaves_the_process_as_it_found_it(clip_files: Path, tmp_path: Path):
    command = [sys.executable, __file__, str(clip_files), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
