"""Puts the weights that a run starts from (everest.checkpoints.init) into its new model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from torch import Tensor, nn

from everest.checkpoints.init import Start
from everest.checkpoints.load import fitted
from everest.config.settings import ModelSettings
from everest.config.stage_settings import (
    FeatureTargetSettings,
    PixelTargetSettings,
    TargetSettings,
    TokenTargetSettings,
)
from everest.errors import CheckpointError, shown
from everest.foreign.preprocessor import require_same_channels
from everest.models.classifier import VideoClassifier
from everest.models.spec import ModelSpec
from everest.models.video_model import PretrainingModel
from everest.models.views import ViewModel
from everest.system.weights import Weights, load_tensors, require_fitting
from everest.tokenizer.spec import TokenizerSpec

ENCODER_NORM: Final = ("encoder.norm.weight", "encoder.norm.bias")
_POOLING = ("norm.", "pool.")  # between encoder and head
_HEAD = ("head.weight", "head.bias")
PARTS: Final = (  # settings of an encoder that are the same before and after a start
    *("class_token", "registers", "rotary", "norm_before", "mlp", "gelu", "input", "embedding_layers"),
)
_DECODER = ("decoder.", "encoder_to_decoder.", "mask_token")


def start_model(
    model: nn.Module,
    spec: ModelSpec | TokenizerSpec,
    start: Start,
    *,
    classes: tuple[str, ...] | None,
    notify: Callable[[str], None],
) -> None:
    """Put the weights into the new model of a stage; see `start_classifier` and `start_pretraining`."""
    assert isinstance(spec, ModelSpec)
    if isinstance(model, VideoClassifier):
        start_classifier(model, spec, start, classes=classes, notify=notify)
    else:
        assert isinstance(model, PretrainingModel)
        start_pretraining(model, spec, start, notify=notify)


def start_classifier(
    classifier: VideoClassifier,
    spec: ModelSpec,
    start: Start,
    *,
    classes: tuple[str, ...] | None,
    notify: Callable[[str], None],
) -> None:
    """Start a classifier from a trained encoder.

    Everything of an autoencoder but its encoder is left out. With mean pooling the last norm of the encoder
    is left out too, as in the released programs, where the norm after pooling starts fresh. A class-attention
    layer also starts fresh. A classifier with the same pooling also gives its pooling, and its head if the
    classes fit.

    Args:
        classes: names of the classes in the data of the run; None if they have none.
    Raises:
        CheckpointError: see `_encoder_tensors`.
    """
    weights, saved, source = start.weights, start.saved, start.init.file
    if weights is None:
        return
    own = classifier.state_dict()
    given = _encoder_tensors(own, weights, start, spec, notify)
    norm = {name.removeprefix("encoder."): given.pop(name) for name in ENCODER_NORM if name in given}
    same_pooling = spec.model.pooling == saved.model.pooling
    if weights.kind == "classifier" and not same_pooling:
        notify(
            f"the checkpoint has {saved.model.pooling} pooling, the recipe {spec.model.pooling}: "
            "pooling and head start fresh"
        )
    if weights.kind == "classifier" and same_pooling:
        pooling = [name for name in own if name.startswith(_POOLING)]
        missing = [name for name in (*pooling, *_HEAD) if name not in weights.tensors]
        if missing:
            raise CheckpointError(f"{source}: damaged, it has no {missing[0]}")
        given |= {name: weights.tensors[name] for name in pooling}
        problem = _head_problem(weights, saved, spec, classes)
        if problem is None:
            given |= {name: weights.tensors[name] for name in _HEAD}
        else:
            notify(problem)
    elif spec.model.pooling == "first":
        given |= norm
    load_tensors(classifier, own | given, source=source)


def _head_problem(
    weights: Weights, saved: ModelSpec, spec: ModelSpec, classes: tuple[str, ...] | None
) -> str | None:
    """Why the head of a classifier does not fit a model, and what follows; None if it does."""
    if list((spec.heads or {}).items()) != list((saved.heads or {}).items()):
        return "the checkpoint has other label heads than the recipe: they start fresh"
    if spec.task != saved.task:
        return f"the checkpoint's head is {saved.task}, the recipe's {spec.task}: the head starts fresh"
    before, now = len(weights.tensors["head.bias"]), spec.num_classes
    if before != now:
        return f"the checkpoint's head is for {before} classes, the recipe has {now}: the head starts fresh"
    for label, (old, new) in enumerate(zip(weights.classes or (), classes or (), strict=False)):
        if old != new:
            names = f"'{shown(old)}' for the checkpoint's head, '{shown(new)}' for the data"
            return f"class {label} is {names}: the head starts fresh"
    return None


def start_pretraining(
    model: PretrainingModel, spec: ModelSpec, start: Start, *, notify: Callable[[str], None]
) -> None:
    """Start pre-training from a trained encoder, and from its decoder or projector if that fits and is kept.

    Raises:
        CheckpointError: see `_encoder_tensors`; or `--decoder keep`, and the decoder does not fit.
    """
    weights, saved, source = start.weights, start.saved, start.init.file
    if weights is None:
        return
    own = model.state_dict()
    given = _encoder_tensors(own, weights, start, spec, notify)
    given = {name: tensor for name, tensor in given.items() if name in own}  # the model may have no last norm
    if any(name in own and name not in given for name in ENCODER_NORM):
        notify(f"the norm after the encoder starts fresh: {weights.kind} weights have none")
    others = {} if start.init.decoder == "fresh" else weights.tensors
    given |= _kept_part("camera_head", "the layer that predicts a camera's motion", own, others, notify)
    if isinstance(model, ViewModel):
        if start.init.decoder == "keep":
            raise CheckpointError(
                f"{source}: pretrain.objective=views has no decoder to keep; leave out --decoder keep"
            )
        given |= _kept_part("projector", "the projector", own, others, notify)
        load_tensors(model, own | given, source=source)
        return
    decoder = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(_DECODER)}
    decoder = fitted(decoder, saved, spec, notify=lambda text: None)
    problem = _decoder_problem(own, decoder, saved, spec)
    if start.init.decoder == "keep" and problem is not None:
        before, now = _decoder_sizes(saved) if saved.kind == "pretrain" else {}, _decoder_sizes(spec)
        settings = " ".join(f"--set model.{key}={size}" for key, size in before.items() if size != now[key])
        fix = f"{settings}, or --decoder fresh" if settings else "--decoder fresh"
        raise CheckpointError(f"{source}: its decoder cannot be kept: {problem}; use {fix}")
    if start.init.decoder == "fresh" or problem is not None:
        notify(f"the decoder starts fresh{f': {problem}' if problem else ''}")
    else:
        notify("the decoder is kept, too")
        given |= decoder
    load_tensors(model, own | given, source=source)


def _kept_part(
    name: str, title: str, own: dict[str, Tensor], others: Mapping[str, Tensor], notify: Callable[[str], None]
) -> dict[str, Tensor]:
    """The tensors of a part of a model in `others`, if they fit; none if the model has no such part."""
    shapes = {key: tensor.shape for key, tensor in own.items() if key.startswith(f"{name}.")}
    kept = {key: tensor for key, tensor in others.items() if key.startswith(f"{name}.")}
    fits = {key: tensor.shape for key, tensor in kept.items()} == shapes
    if shapes:
        notify(f"{title} {'is kept, too' if fits else 'starts fresh'}")
    return kept if shapes and fits else {}


def _decoder_problem(
    own: dict[str, Tensor], decoder: dict[str, Tensor], saved: ModelSpec, spec: ModelSpec
) -> str | None:
    """Why a decoder does not fit a model; None if it does."""
    if saved.kind != "pretrain" or not decoder:
        return f"{saved.kind} weights have none"
    before, now = _decoder_sizes(saved), _decoder_sizes(spec)
    shape = "{decoder_width} wide and {decoder_depth} deep".format_map
    if shape(before) != shape(now):
        return f"it is {shape(before)}, the recipe's {shape(now)}"
    if before != now:
        return "it has another number of attention heads"
    if _target_of(saved) != _target_of(spec):
        return "it predicts other targets"
    shapes = {name: tensor.shape for name, tensor in own.items() if name.startswith(_DECODER)}
    if shapes != {name: tensor.shape for name, tensor in decoder.items()}:
        return "its target has another size"
    return None


def _target_of(spec: ModelSpec) -> tuple[TargetSettings | None, str | None]:
    """The target, without the files it is made from, and the hash of its tokenizer or its teacher."""
    target, tokenizer = spec.target, spec.tokenizer
    if isinstance(target, FeatureTargetSettings):
        return replace(target, cache=None, teacher=""), spec.teacher and spec.teacher.sha256
    if isinstance(target, PixelTargetSettings | TokenTargetSettings):
        target = replace(target, cache=None)
    if target is None or tokenizer is None or not target.needs_tokenizer:
        return target, None
    return target, tokenizer.sha256


def _decoder_sizes(spec: ModelSpec) -> dict[str, int]:
    size = spec.model.backbone_size
    return {
        "decoder_depth": spec.model.decoder_depth,
        "decoder_width": size.decoder_width,
        "decoder_heads": size.decoder_heads,
    }


def _encoder_tensors(
    own: Mapping[str, Tensor], weights: Weights, start: Start, spec: ModelSpec, notify: Callable[[str], None]
) -> dict[str, Tensor]:
    """The tensors of a trained encoder for the clips of `spec`, by their names in a model.

    All but its last norm are there. `own` has the tensors of the new model.

    The clip may be longer or larger than in training: positions are computed, or learned ones are
    interpolated. Tubelets of a multiple or a part of the frames are possible.

    Raises:
        CheckpointError: another backbone, patch size, input or kind of positions, a class token in one of
            them, or tensors that are missing.
    """
    saved, source = start.saved, start.init.file
    given = {name: tensor for name, tensor in weights.tensors.items() if name.startswith("encoder.")}
    require_same_channels(saved, spec, source=source, notify=notify)
    changes = list(differing_settings(saved, spec))
    if changes:
        raise CheckpointError(
            f"{source}: its encoder is another one than the recipe's; use --set {' --set '.join(changes)}"
        )
    given = fitted(given, saved, spec, notify=notify)
    encoder, found = (
        {key: x for key, x in tensors.items() if key.startswith("encoder.") and key not in ENCODER_NORM}
        for tensors in (own, given)
    )
    require_fitting(encoder, found, source=source)
    before, now = ((s.grid.h, s.grid.w) for s in (saved, spec))
    if before != now and spec.model.positions in ("flat", "separable"):
        before, now = (f"{s.frames} x {s.size[0]} x {s.size[1]}" for s in (saved, spec))
        notify(
            f"positions are computed again for clips of {now} instead of {before}, so places have other "
            f"ones; model.positions=interpolated-{spec.model.positions} keeps them"
        )
    return given


def differing_settings(saved: ModelSpec, spec: ModelSpec) -> Iterator[str]:
    """Yield the settings that a recipe needs for the encoder `saved`, as --set takes them."""
    before, now = saved.model, spec.model
    if _size(before) != _size(now):
        yield from (
            f"model.{key}={_as_yaml(getattr(before, key))}"
            for key in ("backbone", "width", "depth", "heads", "mlp_width")
            if getattr(before, key) != getattr(now, key)
        )
    frames, patch = now.tubelet[0], before.tubelet[1:]
    fits = before.tubelet[0] % frames == 0 or frames % before.tubelet[0] == 0
    if not fits or patch != now.tubelet[1:]:
        yield f"model.tubelet={_as_yaml((frames if fits else before.tubelet[0], *patch))}"
    if before.positions != now.positions and now.positions != f"interpolated-{before.positions}":
        yield f"model.positions={before.positions}"
    for key in PARTS:
        if getattr(before, key) != getattr(now, key):
            yield f"model.{key}={_as_yaml(getattr(before, key))}"


def _size(model: ModelSettings) -> tuple[int, int, int, int]:
    size = model.backbone_size
    return size.width, size.depth, size.heads, size.mlp


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
