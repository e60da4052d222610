"""Writes a model as a folder of transformers: VideoMAEForVideoClassification or VideoMAEForPreTraining.

The library transformers is not needed. Tensor names are those that `everest.converters.translation` reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from everest.checkpoints.describe import as_yaml, describe_sampling, find_training_clip
from everest.checkpoints.graph import sample_pixels
from everest.checkpoints.init import ENCODER_SETTINGS
from everest.checkpoints.load import AnyModel, LoadedModel, build_model
from everest.config.heads import MULTI_LABEL
from everest.config.model_settings import MLP_RATIO
from everest.config.settings import ModelSettings
from everest.converters.convert import convert
from everest.converters.foreign_checkpoint import (
    CONFIG_FILE,
    FRAME_SAMPLE_RATE,
    MULTI_LABEL_PROBLEM,
    ForeignCheckpoint,
)
from everest.converters.preprocessor import PREPROCESSOR_FILE, compare_preprocessor, preprocessor
from everest.converters.recognition import LAST_NORM_EPS, Hints
from everest.converters.translation import FAMILIES
from everest.errors import CheckpointError
from everest.methods.grid import TokenSelection
from everest.methods.strategies import AllTokens
from everest.methods.targets import PixelTargets
from everest.models.classifier import EncoderSpec, VideoClassifier
from everest.models.clip_spec import ClipSpec, ModelSpec, PretrainSpec
from everest.models.cost import count_tokens
from everest.models.mae import AutoencoderSpec
from everest.models.student import StudentSpec
from everest.models.view_model import ViewSpec
from everest.system.files import write_text
from everest.system.run_folder import WEIGHTS_FILE
from everest.system.weights import Weights, write_tensors
from everest.video.pixels import IMAGENET

CARD: Final = "README.md"
BIASED_LAYERS: Final = (  # modules of a layer that have a weight and a bias
    *("attention.attention.query", "attention.attention.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense", "layernorm_before", "layernorm_after"),
)


def write_folder(
    folder: Path, loaded: LoadedModel, *, card: Callable[..., str] | None = None
) -> dict[str, Any]:
    """Write a model as a folder of transformers; config.json comes last, so a folder with it is complete.

    As a check, the weights are converted back before they are written. A converted model computes as
    transformers does, so a user of transformers sees the same difference.

    Args:
        card: gives the text of README.md with `notes`; None: no README.md is written.
    Returns:
        `{"written", "difference", "notes"}`: the files, the largest difference between the outputs of the
        model and of the written weights, and the settings where transformers computes something else.
    """
    spec, weights = loaded.spec, loaded.weights
    assert isinstance(spec, ClipSpec)
    if not isinstance(spec, ModelSpec):
        raise CheckpointError(f"{loaded.file}: transformers has no {spec.title}; use --to onnx")
    if obstacles := ", ".join(_find_obstacles(spec)):
        problem = f"transformers' VideoMAE does not support {obstacles}"
        raise CheckpointError(f"{loaded.file}: {problem}; use --to onnx")
    tensors: dict[str, Tensor] = {}
    for our_name, names in FAMILIES["transformers"].translate(list(_list_names(spec))).sources.items():
        parts = weights.tensors[our_name].chunk(len(names))  # everest joins query, key and value
        tensors |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
    config, processing = _make_config(weights, spec), preprocessor(spec)
    foreign = ForeignCheckpoint(path=loaded.file, tensors=tensors, config=config, preprocessor=processing)
    converted = convert(foreign, Hints())
    assert converted.weights.tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(converted.weights.tensors[name], x) for name, x in weights.tensors.items())
    module = build_model(converted.identity.spec, converted.weights, source=loaded.file)
    difference = _compute_outputs(loaded.module, spec) - _compute_outputs(module, spec)
    clip = find_training_clip(loaded)
    notes = [*_note_differences(spec), *compare_preprocessor(processing, spec.size)]
    if clip is not None and clip.sampling == "dense" and clip.fps is None:
        config[FRAME_SAMPLE_RATE] = clip.stride
    elif clip is not None:
        frames = describe_sampling(stride=clip.stride, sampling=clip.sampling, fps=clip.fps)
        notes.append(f"{frames}, which its config.json cannot state")

    texts = {} if card is None else {CARD: card(notes=notes)}
    texts[PREPROCESSOR_FILE], texts[CONFIG_FILE] = (
        json.dumps(x, indent=2) + "\n" for x in (processing, config)
    )
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # written last; not next to other weights
    write_tensors(folder / WEIGHTS_FILE, tensors, metadata={"format": "pt"})
    for name, text in texts.items():
        write_text(folder / name, text)
    written = [str(folder / name) for name in (WEIGHTS_FILE, *texts)]
    return {"written": written, "difference": float(difference.abs().max()), "notes": notes}


@torch.inference_mode()
def _compute_outputs(module: AnyModel, spec: ModelSpec) -> Tensor:
    """Compute logits from all tokens, or predict every second token from the tokens in between."""
    clips = spec.pixels.normalize(sample_pixels(spec, 1))
    if isinstance(module, VideoClassifier):
        return module(clips, keep=1)
    ids = torch.arange(spec.grid.num_tokens)[None]
    return module(clips, selection=TokenSelection(ids[:, ::2], ids[:, 1::2])).prediction


def _make_config(weights: Weights, spec: ModelSpec) -> dict[str, Any]:
    """Return the content of config.json."""
    size, (height, width) = spec.model.backbone_size, spec.size
    shared = {
        "model_type": "videomae",
        "dtype": "float32",
        "num_frames": spec.frames,
        "image_size": height if height == width else [height, width],
        "patch_size": spec.model.tubelet[1],
        "tubelet_size": spec.model.tubelet[0],
        "num_channels": 3,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": size.mlp,
        "hidden_act": "gelu",
        "layer_norm_eps": spec.norms.eps,
        "qv_bias": True,
    }
    if spec.num_classes:
        names = weights.classes or [f"LABEL_{number}" for number in range(spec.num_classes)]
        return {
            **shared,
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": spec.model.pooling == "mean",
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
            **({"problem_type": MULTI_LABEL_PROBLEM} if spec.heads[0].task == MULTI_LABEL else {}),
        }
    assert isinstance(spec, AutoencoderSpec)
    assert isinstance(spec.target, PixelTargets)
    return {
        **shared,
        "architectures": ["VideoMAEForPreTraining"],
        "use_mean_pooling": not spec.norms.after_encoder,  # with mean pooling, transformers has no norm there
        "decoder_num_hidden_layers": spec.model.decoder_depth,
        "decoder_hidden_size": size.decoder_width,
        "decoder_num_attention_heads": size.decoder_heads,
        "decoder_intermediate_size": MLP_RATIO * size.decoder_width,
        "norm_pix_loss": bool(spec.target.normalize),
    }


def _find_obstacles(spec: ModelSpec) -> Iterator[str]:
    """Yield the parts of a model that VideoMAE of transformers does not have."""
    model, target = spec.model, spec.target if isinstance(spec, AutoencoderSpec) else None
    keys = ("positions", "attention", *ENCODER_SETTINGS)
    obstacles = {
        f"model.{key}={as_yaml(getattr(model, key))}": getattr(model, key) != getattr(ModelSettings, key)
        for key in keys
    }
    obstacles |= {
        "an encoder alone": isinstance(spec, (EncoderSpec, StudentSpec, ViewSpec)),
        "pretrain.camera_motion": isinstance(spec, PretrainSpec) and spec.camera > 0,
        "data.channels=1": spec.channels == 1,
        f"model.pooling={model.pooling}": bool(spec.heads) and model.pooling not in ("mean", "first"),
        f"model.tubelet={as_yaml(model.tubelet)}": model.tubelet[1] != model.tubelet[2],
        "data.task=regression": spec.only_head is not None and spec.only_head.task == "regression",
        "data.heads": bool(spec.heads) and spec.only_head is None,
    }
    if isinstance(target, PixelTargets) and target.kind == "pixels":  # excludes subclasses
        obstacles["pretrain.target.frames=half"] = target.frames == "half"
    elif target is not None:
        obstacles[f"pretrain.target.kind={target.kind}"] = True
    yield from (text for text, is_present in obstacles.items() if is_present)


def _note_differences(spec: ModelSpec) -> Iterator[str]:
    """Yield notes on where transformers computes something else with the same weights."""
    if isinstance(spec, AutoencoderSpec):
        yield f"VideoMAEModel encodes all {spec.grid.num_tokens} tokens of a clip"
        mask = f"pass the mask of {spec.selection.strategy} as bool_masked_pos"
        yield f"VideoMAEForPreTraining selects no tokens: {mask}"
        if spec.pixels != IMAGENET:
            yield "its loss assumes frames normalized by ImageNet's mean and std, and this model has others"
        if isinstance(spec.target, PixelTargets) and spec.target.normalize == "token":
            yield "its loss normalizes the channels of a tubelet one by one, this model all values together"
    elif spec.selection != AllTokens():
        counts = count_tokens(spec)
        trained = f"this model was trained with {counts.visible}"
        check = "check with everest eval --set finetune.selection.keep_ratio=1"
        yield f"transformers encodes all {counts.total} tokens, {trained}; {check}"
    if any(head.chosen_thresholds or head.alarm for head in spec.heads):
        yield "it stores no thresholds; --to onnx states them in `heads`"
    norm = "fc_norm" if spec.heads else "decoder.norm"
    if (not spec.heads or spec.model.pooling == "mean") and spec.norms.last_eps != LAST_NORM_EPS:
        where = "the last norm" if spec.heads else "the decoder's last norm, not the encoder's,"
        fix = f"set model.{norm}.eps = {spec.norms.last_eps:g} after loading"
        yield f"{where} has another eps ({LAST_NORM_EPS:g}); for the same numbers {fix}"


def _list_names(spec: ModelSpec) -> Iterator[str]:
    """Yield the names of a model's parameters in transformers."""
    size, mean = spec.model.backbone_size, spec.model.pooling == "mean"
    modules = ["videomae.embeddings.patch_embeddings.projection"]
    stacks = {"videomae.encoder.layer": size.depth}
    if spec.kind == "classifier":
        modules += ["classifier", "fc_norm" if mean else "videomae.layernorm"]
    else:
        modules += ["decoder.norm", "decoder.head"]
        modules += ["videomae.layernorm"] if spec.norms.after_encoder else []
        stacks["decoder.decoder_layers"] = spec.model.decoder_depth
        yield from ("mask_token", "encoder_to_decoder.weight")
    for stack, depth in stacks.items():
        for layer in (f"{stack}.{number}" for number in range(depth)):
            modules += (f"{layer}.{module}" for module in BIASED_LAYERS)
            yield f"{layer}.attention.attention.key.weight"
    yield from (f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias"))
