"""The parts that the demos share: their folder, and timed parts with a run folder each."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from everest.config.recipe import load_recipe
from everest.config.run_options import RunOptions, RunStage
from everest.config.settings import Recipe
from everest.errors import RecipeError
from everest.evaluation.evaluation import EvaluationFiles, evaluate_checkpoint
from everest.stages import run_stage
from everest.system.accelerator import make_accelerator, make_runtime
from everest.system.events import Emit, notice
from everest.system.files import is_unfinished, write_text
from everest.system.locks import sole_writer
from everest.system.signals import Stopped
from everest.tokenizer.cache import write_tokens
from everest_demo.rendering import RenderedSet

VIDEOS: Final = "demo-videos"
REPORT: Final = "report.md"
PICTURE: Final = "reconstruction.png"
RUNS: Final = ("pretrain", "finetune-pretrained", "finetune-scratch")  # of EVEREST's demo
LVMAE_RUNS: Final = ("tokenizer", "tokens", "pretrain", "finetune-64", "finetune-64-scratch", "finetune-16")
# The report first, which marks a demo as finished; the videos last, which identify a demo's folder.
WRITTEN: Final = (REPORT, *RUNS, *LVMAE_RUNS, PICTURE, VIDEOS)


def clear_demo(folder: Path, *, overwrite: bool) -> None:
    """Check that a demo may write to `folder`; remove the files of an earlier demo.

    A demo without a report, which is written last, was interrupted and begins again.

    Raises:
        RecipeError: the folder holds other files, or a finished demo and `overwrite` is not given.
    """
    if not folder.exists() or all(is_unfinished(file.name) for file in folder.iterdir()):
        return
    if not (folder / VIDEOS).is_dir():
        raise RecipeError(f"--output {folder}: exists and holds no demo; choose another folder")
    if (folder / REPORT).exists() and not overwrite:
        raise RecipeError(f"--output {folder}: holds a demo; choose another folder, or use --overwrite")
    for path in (folder / name for name in WRITTEN):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def demo_folder(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold the folder for one demo, cleared as `clear_demo` does.

    Raises:
        RecipeError: as of `clear_demo`, or another process runs a demo there.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--output {folder}: a file is in the way; choose another folder")
    with sole_writer(folder / REPORT):
        clear_demo(folder, overwrite=overwrite)
        yield


@dataclass(frozen=True, kw_only=True)
class DemoSteps:
    """The parts of a demo, all on the CPU. Each training writes a run folder of its name to `folder`."""

    folder: Path
    emit: Emit
    seconds: dict[str, float] = field(default_factory=dict)  # of each part, in their order

    def render(self, videos: RenderedSet) -> None:
        """Write the videos that `recipe` reads."""
        with self._timed("rendering videos"):
            videos.write(self.folder / VIDEOS)

    def recipe(self, name: str, *overrides: str) -> Recipe:
        """Load a shipped recipe with the rendered videos as its data."""
        root = f'data.root="{(self.folder / VIDEOS).resolve()}"'
        return load_recipe(name, overrides=[root, *overrides])

    def tokenizer(self, name: str, recipe: Recipe) -> Path:
        """Train a tokenizer; returns its weights."""
        with self._timed(f"training a tokenizer ({name})"):
            return self._train("train-tokenizer", name, recipe, init=None)

    def tokens(self, recipe: Recipe, *, variants: int) -> None:
        """Cache the outputs of the recipe's tokenizer in the folder that its pre-training reads."""
        assert recipe.pretrain.cache is not None
        folder = Path(recipe.pretrain.cache)
        with self._timed(f"preparing tokens ({folder.name})"):
            write_tokens(recipe, folder, variants=variants, cpu=True, emit=self.emit)

    def pretrain(self, name: str, recipe: Recipe, *, init: Path | None = None) -> Path:
        """Pre-train an encoder, from `init` or from new weights; returns the weights."""
        with self._timed(f"pre-training ({name})"):
            return self._train("pretrain", name, recipe, init=init)

    def finetune(self, name: str, recipe: Recipe, *, init: Path | None) -> float:
        """Fine-tune from `init`, or from scratch, and evaluate; returns top-1 accuracy in percent."""
        with self._timed(f"fine-tuning ({name})"):
            weights = self._train("finetune", name, recipe, init=init)
        with self._timed(f"testing ({name})"):
            train = recipe.train
            runtime = make_runtime(make_accelerator(train.precision, cpu=True))
            files = EvaluationFiles()
            return evaluate_checkpoint(recipe, weights, runtime, emit=self.emit, files=files)["top1"]

    def write_report(self, text: str) -> None:
        """Write `report.md`: the text, and the seconds of all parts."""
        rows = "\n".join(f"| {part} | {seconds} |" for part, seconds in self.seconds.items())
        write_text(self.folder / REPORT, f"{text}\n| part | seconds |\n|---|---|\n{rows}\n")

    def _train(self, stage: RunStage, name: str, recipe: Recipe, *, init: Path | None) -> Path:
        """Train a stage in its run folder; returns the weights."""
        options = RunOptions(
            stage=stage,
            recipe_file=recipe.name,
            output=self.folder / name,
            cpu=True,
            init=init,
        )
        return run_stage(recipe, options, self.emit).weights

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        self.emit(notice(f"demo: {part}"))
        began = time.monotonic()
        try:
            yield
        except Stopped as stopped:
            raise Stopped(stopped.signal, "stopped; the same command begins again") from stopped
        self.seconds[part] = round(time.monotonic() - began, 1)
