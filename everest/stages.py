"""The training stages as functions for notebooks and programs, with the results of the commands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from everest import finetuning, pretraining
from everest.checkpoints.start import find_init
from everest.config.recipe import recipe_for_run
from everest.config.recipe_files import AUTO
from everest.config.settings import Recipe
from everest.errors import RecipeError, unknown_name
from everest.suggest.auto import auto_recipe
from everest.suggest.choices import Purpose
from everest.system.events import Report, notice, silent
from everest.system.run_environment import Decoder, Init
from everest.train.context import RunOptions
from everest.train.start import run_context, start_or_resume
from everest.train.tokenizer_first import with_tokenizer
from everest.train_tokenizer import set_up_tokenizer, train_tokenizer


def pretrain(
    recipe: str | Path,
    *,
    init: str | Path | None = None,
    decoder: Decoder | None = None,
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
    cpu: bool = False,
    precision: str | None = None,
    seed: int | None = None,
    tracker: str = "none",
    report: Report = silent,
) -> Path:
    """Train an encoder on unlabeled videos, as `everest pretrain`, in this process.

    Several processes train one run if torchrun or `accelerate launch` starts them, each calling this.

    Args:
        recipe: the name of a shipped recipe, a YAML file, or "auto" for one that is made for `data`.
        init: the run folder or weights to start from; None or "none": from scratch.
        decoder: keep that of `init`, or start fresh; None: keep it if it fits.
        data: the folder of lists and videos (`data.root`).
        overrides: `section.key=value` texts, which win over the recipe.
        output: the run folder; None: `runs/pretrain/RECIPE-TIME`.
        resume: resume the run in `output`, if one is there. False: refuse to.
        overwrite: replace the contents of `output`.
        cpu: use the CPU even if there is a GPU.
        precision, seed: of the section `train`; None: the recipe's.
        tracker: none, tensorboard or wandb, in addition to metrics.jsonl.
        report: receives the progress and notices (everest.system.events).
    Returns:
        The run folder, which `everest.load_model` opens.
    Raises:
        UserError: the recipe, the data or the environment does not allow it; see everest.errors.
    """
    settings = _recipe(recipe, data, overrides, precision, seed, report, cpu=cpu, purpose="pretrain")
    output = None if output is None else Path(output)
    options = RunOptions(
        command="pretrain",
        recipe_file=str(recipe),
        output=output,
        resume="auto" if resume else "never",
        overwrite=overwrite,
        cpu=cpu,
        tracker=tracker,
        init=_find_init(init, output, overwrite, decoder),
    )
    settings, options = with_tokenizer(
        settings,
        options,
        train=partial(_train_tokenizer, report=report),
        set_up=pretraining.set_up_pretraining,
        notify=lambda text: report(notice(text)),
    )
    with run_context(options, settings, report) as context:
        training = pretraining.set_up_pretraining(settings, context)
        with start_or_resume(training, settings):
            pretraining.pretrain(training)
    training.accelerator.wait_for_everyone()
    return training.run.path


def finetune(
    recipe: str | Path,
    *,
    init: str | Path | None,
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
    cpu: bool = False,
    precision: str | None = None,
    seed: int | None = None,
    tracker: str = "none",
    report: Report = silent,
) -> Path:
    """Train a classifier from a pre-trained encoder, as `everest finetune`, in this process.

    Args:
        init: the run folder or weights to start from; None or "none": from scratch. For the others see
            `pretrain`.
    Returns:
        The run folder, which `everest.load_model` opens.
    Raises:
        UserError: the recipe, the data or the environment does not allow it; see everest.errors.
    """
    purpose = "scratch" if init in (None, "none") else "finetune"
    settings = _recipe(recipe, data, overrides, precision, seed, report, cpu=cpu, purpose=purpose)
    output = None if output is None else Path(output)
    options = RunOptions(
        command="finetune",
        recipe_file=str(recipe),
        output=output,
        resume="auto" if resume else "never",
        overwrite=overwrite,
        cpu=cpu,
        tracker=tracker,
        init=_find_init(init, output, overwrite),
    )
    with run_context(options, settings, report) as context:
        stage = finetuning.set_up_finetuning(settings, context)
        with start_or_resume(stage.training, settings):
            finetuning.finetune(stage)
    stage.training.accelerator.wait_for_everyone()
    return stage.training.run.path


def _train_tokenizer(recipe: Recipe, options: RunOptions, *, report: Report) -> None:
    with run_context(options, recipe, report) as context:
        stage = set_up_tokenizer(recipe, context)
        with start_or_resume(stage.training, recipe):
            quality = train_tokenizer(stage)
    for warning in quality["warnings"] if quality else ():
        report(notice(f"warning: {warning}"))


def _find_init(
    name: str | Path | None, output: Path | None, overwrite: bool, decoder: Decoder | None = None
) -> Init | None:
    if decoder not in (None, "keep", "fresh"):
        raise unknown_name("decoder", decoder, ("keep", "fresh"))
    if name is None or name == "none":
        if decoder is not None:
            raise RecipeError("decoder: only with init, which may have a decoder")
        return None
    return find_init(name, output=output, overwrite=overwrite, decoder=decoder)


def _recipe(
    recipe: str | Path,
    data: str | Path | None,
    overrides: Sequence[str],
    precision: str | None,
    seed: int | None,
    report: Report,
    *,
    cpu: bool,
    purpose: Purpose,
) -> Recipe:
    root = None if data is None else str(data)
    made = recipe == AUTO
    return recipe_for_run(
        auto_recipe(root, purpose=purpose, overrides=overrides, cpu=cpu) if made else recipe,
        data=root,
        overrides=overrides,
        precision=precision,
        seed=seed,
        notify=lambda text: report(notice(text)),
    )
