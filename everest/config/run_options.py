"""The options of a training run that are not in its recipe, declared once for commands and for Python.

This file does not need torch.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from everest.config.values import StageName
from everest.system.run_folder import DecoderStart

# How commands show options: names with the word for the value, and help.
DATA: Final = ("--data DIR", "Folder or URL of lists and videos (data.root).")
OVERRIDES: Final = ("--set KEY=VALUE", "Override a value of the recipe; repeatable.")
OVERWRITE: Final = ("--overwrite", "Replace the contents of --output.")
RunStage = StageName | Literal["train-tokenizer"]  # what a run trains, by the name of its command


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The options of `pretrain`, `finetune` and `train-tokenizer`, in commands and in Python."""

    data: Annotated[str | None, DATA] = None
    overrides: Annotated[list[str] | None, OVERRIDES] = None
    output: Annotated[Path | None, ("--output -o DIR", "Run folder [runs/COMMAND/RECIPE-TIME].")] = None
    # Python: True for auto, False for never.
    resume: Annotated[
        str, ("--resume auto|never|DIR", "Resume the run in --output (auto), in DIR, or never.")
    ] = "auto"
    overwrite: Annotated[bool, OVERWRITE] = False
    tracker: Annotated[
        Literal["none", "tensorboard", "wandb"],
        ("--tracker", "Log curves and images to TensorBoard or W&B (offline)."),
    ] = "none"
    one_batch: Annotated[bool, ("--overfit-one-batch", "Overfit the first batch, as a check.")] = False


@dataclass(frozen=True, kw_only=True)
class RunOptions(StageOptions):
    """The options of a run, with what its command or function adds."""

    stage: RunStage
    recipe_file: str  # or the name of a recipe
    must_exist: bool = False  # there must be a run in `output` to resume
    cpu: bool = False  # use the CPU even if there is a GPU
    init: str | Path | None = None  # run folder or weights to start from; None: from scratch
    decoder: DecoderStart | None = None  # the decoder of `init`; None: keep it if it fits

    @classmethod
    def of(cls, options: StageOptions, **added: Any) -> RunOptions:
        """The options of a run; `resume` is `auto` or `never` afterwards, and `init` None for "none"."""
        values = {each.name: getattr(options, each.name) for each in fields(StageOptions)}
        values["tracker"] = options.tracker or "none"
        resumes: dict[Any, str] = {True: "auto", False: "never"}
        values["resume"] = resumes.get(options.resume, options.resume)
        if values["resume"] not in ("auto", "never"):
            values |= {"output": Path(options.resume), "resume": "auto", "must_exist": True}
        run_options = cls(**values | added)
        return replace(run_options, init=None) if run_options.init == "none" else run_options

    def folder(self, recipe: str) -> Path:
        """The run folder: the named one, else runs/STAGE/RECIPE-TIME, numbered if that exists already."""
        if self.output:
            return Path(self.output)
        folder = Path("runs") / self.stage / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
        numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
        return next(path for path in itertools.chain([folder], numbered) if not path.exists())
