"""Opens the checkpoints that a user names: run folders, .safetensors files and hf:OWNER/NAME.

`find_weights` returns the file, `open_weights` its content, and `open_model` the module.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from everest.errors import CheckpointError
from everest.foreign.convert import convert
from everest.foreign.facts import Hints
from everest.foreign.files import (
    CONFIG,
    PICKLED,
    SHARDS,
    locate,
    own_file,
    read_foreign,
    refuse_broken_links,
)
from everest.methods.strategies import Strategy
from everest.models.embedding import with_tubelet_frames
from everest.models.positions import interpolated
from everest.models.spec import ModelSpec, Transformer
from everest.system.hub import warn_on_main
from everest.system.run_folder import BEST, RECIPE, WEIGHTS
from everest.system.weights import PICKLES, Weights, load_tensors, read_weights, require_fitting
from everest.system.weights_header import read_header
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.spec import TokenizerSpec

Which = Literal["newest", "best"]
Kind = Literal["pretrain", "classifier", "transformer", "tokenizer"]  # transformer: any but the last
AnyModel = Transformer | AdaptiveTokenizer
ONNX_SUFFIX: Final = ".onnx"  # of exported files, which everest.checkpoints.exported opens


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A checkpoint in memory."""

    file: Path
    weights: Weights
    spec: ModelSpec | TokenizerSpec  # of `module`: the saved one with the requested clip and selection
    module: AnyModel  # in eval mode, on the CPU

    @property
    def transformer(self) -> Transformer:
        """The module of a checkpoint of `pretrain` or `finetune`, or of a converted encoder."""
        assert not isinstance(self.module, AdaptiveTokenizer)
        return self.module


def find_weights(
    checkpoint: str | Path,
    *,
    which: Which | None = None,
    quiet: bool = False,
    notify: Callable[[str], None] = warn_on_main,
) -> Path:
    """Return the safetensors file of `checkpoint`, which is a run folder, a file or hf:OWNER/NAME.

    Args:
        which: of a run folder; None: the best on `data.val` if there are any, else the newest.
        quiet: do not report which weights were chosen.
        notify: receives which weights were chosen, and the license of a checkpoint of the hub.
    Raises:
        CheckpointError: no such file; the message names what the folder has instead.
    """
    path = locate(str(checkpoint), notify=notify)
    if path.is_dir():
        if which is None and (path / BEST).is_file():
            step = read_header(path / BEST).step
            if not quiet:
                text = f"the best weights on data.val, of step {step}; --which newest uses the last"
                notify(f"{path / BEST}: {text}")
            return path / BEST
        file = path / (BEST if which == "best" else WEIGHTS)
        if file.is_file():
            return file
        if which == "best":
            raise CheckpointError(f"{path}: no {file.name} in it (no data.val, so no best)")
        if (path / SHARDS).is_file():
            return path / SHARDS
        refuse_broken_links(file)
        if not any((path / name).is_file() for name in PICKLED):
            raise CheckpointError(
                f"{path}: no {file.name} in it (the run has not saved yet, or it is no run folder)"
            )
    elif not path.exists():
        refuse_broken_links(path)
        raise CheckpointError(
            f"{path}: no such checkpoint; name a run folder, a .safetensors file or hf:OWNER/NAME"
        )
    elif path.suffix not in PICKLES:
        return path
    raise CheckpointError(
        f"{checkpoint}: a pickle, which only convert reads; first "
        f"everest convert {shlex.quote(str(checkpoint))} --output FILE.safetensors"
    )


def all_weights(file: Path) -> list[Path]:
    """Return a weights file and the other weights of its run, which no command may replace."""
    names = (WEIGHTS, BEST) if (file.parent / RECIPE).is_file() else ()
    return [file, *(file.with_name(name) for name in names if name != file.name)]


def open_weights(path: Path) -> Weights:
    """Read a file that `find_weights` returned; a checkpoint of transformers is converted.

    Raises:
        CheckpointError: damaged, or of a program that needs `everest convert`.
    """
    if path.suffix == ONNX_SUFFIX:
        raise CheckpointError(
            f"{path}: an ONNX file, which only eval and profile --latency read; name its checkpoint"
        )
    if own_file(path) is None and (path.parent / CONFIG).is_file():
        converted = convert(read_foreign(path), Hints())
        for note in converted.identity.notes:
            warn_on_main(f"{path}: {note}")
        return converted.weights
    return read_weights(path)


def open_encoder(path: Path) -> Weights:
    """Read a file that `find_weights` returned and whose encoder a model may start from.

    Raises:
        CheckpointError: damaged, of a program that needs `everest convert`, or a tokenizer.
    """
    weights = open_weights(path)
    ModelSpec.from_settings(weights.settings, source=path)
    return weights


def open_model(
    checkpoint: str | Path,
    *,
    which: Which | None = None,
    kind: Kind | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    selection: Strategy | None = None,
    check: Callable[[ModelSpec], None] | None = None,
) -> LoadedModel:
    """Rebuild the module of a checkpoint. Every command that opens a trained model uses it.

    Args:
        kind: the only kind that is accepted; None: any.
        frames, size, selection: clip and token selection of a transformer; None: as saved.
        check: raises if a transformer's spec does not suit the caller; called before the module is built.
    Raises:
        CheckpointError: no such checkpoint, a damaged or foreign one, or one of another kind.
    """
    file = find_weights(checkpoint, which=which)
    weights = open_weights(file)
    if kind not in (None, "transformer", weights.kind):
        raise wrong_kind(weights.kind, kind, source=file)
    if weights.kind == "tokenizer" and kind != "transformer":
        spec = TokenizerSpec.from_settings(weights.settings, source=file)
    else:
        spec = ModelSpec.from_settings(weights.settings, source=file)
        if weights.classes and not spec.heads and len(weights.classes) != spec.num_classes:
            raise CheckpointError(
                f"{file}: {len(weights.classes)} names of classes, its head has {spec.num_classes}"
            )
        frames, size, selection = frames or spec.frames, size or spec.size, selection or spec.selection
        spec = replace(spec, frames=frames, size=size, selection=selection)
        if check is not None:
            check(spec)
    return LoadedModel(file=file, weights=weights, spec=spec, module=build_model(spec, weights, source=file))


def build_model(spec: ModelSpec | TokenizerSpec, weights: Weights, *, source: Path) -> AnyModel:
    """Return the module of `spec` with the tensors of `weights`, in eval mode.

    Learned positions are interpolated if `spec` has another clip than the weights.

    Raises:
        CheckpointError: the tensors do not fit the module.
    """
    tensors = weights.tensors
    if isinstance(spec, ModelSpec):
        saved = ModelSpec.from_settings(weights.settings, source=source)
        tensors = fitted(tensors, saved, spec, notify=warn_on_main)
    blank = spec if isinstance(spec, TokenizerSpec) else spec.without_files()
    with torch.device("meta"):  # sizes that are not the sizes in the file are refused before they take memory
        require_fitting(blank.build().state_dict(), tensors, source=str(source))
    module = spec.build()
    load_tensors(module, tensors, source=str(source))
    return module.eval()


def fitted(
    tensors: dict[str, Tensor], saved: ModelSpec, spec: ModelSpec, *, notify: Callable[[str], None]
) -> dict[str, Tensor]:
    """The tensors of `saved` for the clips and tubelets of `spec`: learned positions, and the embedding."""
    if saved.model.positions == "learned-separable" and saved.grid != spec.grid:
        before, now = (f"{s.frames} x {s.size[0]} x {s.size[1]}" for s in (saved, spec))
        notify(f"learned positions are interpolated from clips of {before} to {now}")
        tensors = interpolated(tensors, saved.grid, spec.grid)
    before, now = saved.model.tubelet[0], spec.model.tubelet[0]
    if before != now:
        notify(f"tubelets of {before} frames become tubelets of {now}: the same tokens on still clips")
        tensors = with_tubelet_frames(tensors, now)
    return tensors


def wrong_kind(found: str, kind: str, *, source: str | Path) -> CheckpointError:
    """The error for a model of kind `found` where one of `kind` is needed; it names the command to run."""
    if found == "tokenizer":
        return CheckpointError(
            f"{source}: a tokenizer, which has no transformer; name a run of pretrain or finetune"
        )
    fixes = {
        "classifier": "fine-tune it first: everest finetune --init CHECKPOINT",
        "pretrain": "a checkpoint of `everest pretrain` is needed here",
        "tokenizer": "train one: everest train-tokenizer --recipe RECIPE",
    }
    article = "an" if found == "encoder" else "a"
    return CheckpointError(
        f"{source}: {article} {found} checkpoint where a {kind} one is needed; {fixes[kind]}"
    )


def recipe_of_run(weights: Path) -> Path:
    """Return the recipe of the run folder that contains `weights`.

    Raises:
        CheckpointError: no recipe next to the weights.
    """
    path = weights.parent / RECIPE
    if not path.is_file():
        raise CheckpointError(f"{weights}: no {RECIPE} next to it; choose clips and views with --recipe")
    return path
