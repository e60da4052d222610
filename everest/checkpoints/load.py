"""From a checkpoint that a user names, a run folder, a .safetensors file or hf:OWNER/NAME, to a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor

from everest.checkpoints.convert import convert
from everest.checkpoints.foreign import CONFIG, PICKLED, SHARDS, own_file, read_foreign
from everest.checkpoints.sizes import Hints
from everest.errors import CheckpointError
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import ModelSpec
from everest.system.hub import fetch, is_hub_name, warn_on_main
from everest.system.run_folder import BEST, RECIPE, WEIGHTS
from everest.system.weights import PICKLES, Weights, load_tensors, read_weights
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.spec import TokenizerSpec

Which = Literal["newest", "best"]


def find_weights(
    checkpoint: str | Path, *, which: Which = "newest", notify: Callable[[str], None] = warn_on_main
) -> Path:
    """The safetensors file that `checkpoint`, a run folder, a file or hf:OWNER/NAME, stands for.

    Args:
        notify: told the licence of a checkpoint of the hub.
    Raises:
        CheckpointError: there is none; it says what the folder has instead.
    """
    path = fetch(str(checkpoint), notify=notify) if is_hub_name(checkpoint) else Path(checkpoint)
    if path.is_dir():
        return _weights_in(path, which, named=str(checkpoint))
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint; name a run folder, a .safetensors file or hf:OWNER/NAME"
        )
    if path.suffix in PICKLES:
        raise _is_pickle(str(path))
    return path


def _weights_in(folder: Path, which: Which, *, named: str) -> Path:
    file = folder / (WEIGHTS if which == "newest" else BEST)
    if file.is_file():
        return file
    if which == "best":
        raise CheckpointError(f"{folder}: no {file.name} in it (no data.val, so no best)")
    if (folder / SHARDS).is_file():
        return folder / SHARDS
    if any((folder / name).is_file() for name in PICKLED):
        raise _is_pickle(named)
    raise CheckpointError(
        f"{folder}: no {file.name} in it (the run has not saved yet, or it is no run folder)"
    )


def _is_pickle(named: str) -> CheckpointError:
    return CheckpointError(
        f"{named}: a pickle, which only convert reads; first everest convert {named} --out FILE.safetensors"
    )


def open_weights(path: Path) -> Weights:
    """The weights of a file that `find_weights` found: ours, or those of transformers, which are converted.

    Raises:
        CheckpointError: damaged, or of a program that needs `everest convert`.
    """
    if own_file(path) is None and (path.parent / CONFIG).is_file():
        return convert(read_foreign(path), Hints()).weights
    return read_weights(path)


def recipe_beside(weights: Path) -> Path:
    """The recipe of the run folder in which `weights` lie.

    Raises:
        CheckpointError: they lie alone.
    """
    path = weights.parent / RECIPE
    if not path.is_file():
        raise CheckpointError(f"{weights}: no {RECIPE} beside it; say how to test it by --recipe")
    return path


def require_kind(weights: Weights, kind: str, *, source: Path) -> None:
    """Raise CheckpointError unless the weights are of `kind`, with the command that makes or takes them."""
    if weights.kind == kind:
        return
    if weights.kind == "tokenizer":
        raise CheckpointError(
            f"{source}: a tokenizer, which has no transformer; name a run of pretrain or finetune"
        )
    mends = {
        "classifier": "fine-tune it first: everest finetune --init CHECKPOINT",
        "pretrain": "a checkpoint of `everest pretrain` is needed here",
        "tokenizer": "train one: everest train-tokenizer --recipe RECIPE",
    }
    raise CheckpointError(
        f"{source}: a {weights.kind} checkpoint where a {kind} one is needed; {mends[kind]}"
    )


def load_model(
    checkpoint: str | Path, *, which: Which = "newest"
) -> MaskedAutoencoder | VideoClassifier | AdaptiveTokenizer:
    """The model of a checkpoint, of any kind, in eval mode on the CPU.

    Raises:
        CheckpointError: no such checkpoint, or one that is damaged or not ours.
    """
    path = find_weights(checkpoint, which=which)
    weights = open_weights(path)
    rebuild = tokenizer_of if weights.kind == "tokenizer" else model_of
    return rebuild(weights, source=path)


def load_transformer(checkpoint: str | Path) -> MaskedAutoencoder | VideoClassifier:
    """As `load_model`, of a checkpoint of `pretrain` or `finetune`."""
    path = find_weights(checkpoint)
    return model_of(open_weights(path), source=path)


def model_of(weights: Weights, *, source: Path) -> MaskedAutoencoder | VideoClassifier:
    """Rebuild the module that `weights` of a transformer were saved from."""
    model = ModelSpec.of(weights.settings, source=source).build()
    load_tensors(model, weights.tensors, source=str(source))
    return model.eval()


def tokenizer_of(weights: Weights, *, source: Path) -> AdaptiveTokenizer:
    """Rebuild the tokenizer that `weights` were saved from."""
    require_kind(weights, "tokenizer", source=source)
    model = TokenizerSpec.of(weights.settings, source=source).build()
    load_tensors(model, weights.tensors, source=str(source))
    return model.eval()


def start_from(
    classifier: VideoClassifier,
    spec: ModelSpec,
    weights: Weights,
    *,
    source: Path,
    notify: Callable[[str], None],
) -> None:
    """Begin a classifier with a trained encoder; from another that pools alike, with its head where it fits.

    The clip may be longer or larger than in pre-training: positions are no weights. What the autoencoder has
    beyond the encoder is left behind. With mean pooling its last norm is left behind too, as in the released
    programs, where the norm after pooling starts fresh; so does a class-attention layer.

    Raises:
        CheckpointError: another backbone, tubelet or kind of positions.
    """
    own = classifier.state_dict()
    given = {name: tensor for name, tensor in weights.tensors.items() if name.startswith("encoder.")}
    norm = {name: given.pop(f"encoder.{name}") for name in _NORM if f"encoder.{name}" in given}
    theirs = ModelSpec.of(weights.settings, source=source)
    _check_encoder(given, own, spec, theirs, source)
    if weights.kind == "classifier" and _same_pooling(spec, theirs, notify):
        given |= {name: weights.tensors[name] for name in own if name.startswith(_POOLED)}
        given |= _fitting_head(weights.tensors, own, notify) if _same_heads(spec, theirs, notify) else {}
    elif spec.model.pooling == "first":
        given |= norm
    load_tensors(classifier, own | given, source=str(source))


_NORM = ("norm.weight", "norm.bias")
_POOLED = ("norm.", "pool.")  # between encoder and head
_HEAD = ("head.weight", "head.bias")


def _check_encoder(
    given: dict[str, Tensor], own: dict[str, Tensor], spec: ModelSpec, other: ModelSpec, source: Path
) -> None:
    needed = {name for name in own if name.startswith("encoder.")}
    same_shapes = needed == given.keys() and all(own[name].shape == given[name].shape for name in needed)
    if spec.model.positions != other.model.positions:  # they leave no trace in the shapes, as heads do
        raise CheckpointError(
            f"{source}: its encoder knows {other.model.positions} positions; "
            f"set model.positions={other.model.positions}"
        )
    if not same_shapes or spec.model.backbone_size.heads != other.model.backbone_size.heads:
        ours, theirs = (
            f"{s.model.backbone} {s.model.backbone_size} tubelet {s.model.tubelet}" for s in (spec, other)
        )
        raise CheckpointError(f"{source}: its encoder is {theirs}, the recipe asks for {ours}")


def _same_pooling(spec: ModelSpec, other: ModelSpec, notify: Callable[[str], None]) -> bool:
    ours, theirs = spec.model.pooling, other.model.pooling
    if ours != theirs:
        notify(f"the checkpoint has {theirs} pooling, the recipe {ours}: pooling and head start fresh")
    return ours == theirs


def _same_heads(spec: ModelSpec, other: ModelSpec, notify: Callable[[str], None]) -> bool:
    ours, theirs = (list((heads or {}).items()) for heads in (spec.heads, other.heads))
    if ours != theirs:
        notify("the checkpoint has other label heads than the recipe: they start fresh")
    return ours == theirs


def _fitting_head(
    tensors: dict[str, Tensor], own: dict[str, Tensor], notify: Callable[[str], None]
) -> dict[str, Tensor]:
    if all(tensors[name].shape == own[name].shape for name in _HEAD):
        return {name: tensors[name] for name in _HEAD}
    before, now = len(tensors["head.bias"]), len(own["head.bias"])
    notify(f"the checkpoint's head is for {before} classes, the recipe has {now}: the head starts fresh")
    return {}
