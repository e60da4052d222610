"""How transformers describes a VideoMAE, and what is done to its frames.

A model as a folder of transformers: VideoMAEForVideoClassification or VideoMAEForPreTraining.

It is written without transformers, by the names that `everest.convert` reads, and read by it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from everest.checkpoints.convert import convert
from everest.checkpoints.families import FAMILIES
from everest.checkpoints.foreign import CONFIG, Foreign
from everest.checkpoints.graph import sample_clips
from everest.checkpoints.load import model_of
from everest.checkpoints.sizes import MLP_RATIO, TORCH_EPS, Hints
from everest.config.settings import PixelTargetSettings, TokenTargetSettings
from everest.errors import CheckpointError
from everest.methods.grid import TokenSelection
from everest.methods.strategies import AllTokens
from everest.models.classifier import VideoClassifier
from everest.models.cost import count_tokens
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import ModelSpec
from everest.system.files import write_atomically, write_text
from everest.system.run_folder import WEIGHTS
from everest.system.weights import Weights
from everest.video.pixels import IMAGENET_MEAN, IMAGENET_STD

BILINEAR: Final = 2  # of PIL, as transformers writes it


def model_config(weights: Weights, spec: ModelSpec) -> dict[str, Any]:
    """What config.json says."""
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
        "intermediate_size": MLP_RATIO * size.width,
        "hidden_act": "gelu",
        "layer_norm_eps": spec.norms.eps,
        "qv_bias": True,
    }
    return {**shared, **(_classifying(weights, spec) if spec.num_classes else _predicting(spec))}


def _classifying(weights: Weights, spec: ModelSpec) -> dict[str, Any]:
    assert spec.num_classes is not None
    names = weights.classes or [f"LABEL_{number}" for number in range(spec.num_classes)]
    return {
        "architectures": ["VideoMAEForVideoClassification"],
        "use_mean_pooling": spec.model.pooling == "mean",
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _predicting(spec: ModelSpec) -> dict[str, Any]:
    size = spec.model.backbone_size
    assert isinstance(spec.target, PixelTargetSettings)
    return {
        "architectures": ["VideoMAEForPreTraining"],
        "use_mean_pooling": not spec.norms.after_encoder,  # transformers' way to have no norm there
        "decoder_num_hidden_layers": spec.model.decoder_depth,
        "decoder_hidden_size": size.decoder_width,
        "decoder_num_attention_heads": size.decoder_heads,
        "decoder_intermediate_size": MLP_RATIO * size.decoder_width,
        "norm_pix_loss": bool(spec.target.normalize),
    }


def preprocessor_config(spec: ModelSpec) -> dict[str, Any]:
    """What preprocessor_config.json says: sizes, mean and deviation of a clip's frames."""
    height, width = spec.size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "video_processor_type": "VideoMAEVideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


PREPROCESSOR: Final = "preprocessor_config.json"
LEAVES: Final = ("weight", "bias")
BIASED: Final = (  # modules of a layer with a weight and a bias
    "attention.attention.query",
    "attention.attention.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    "layernorm_before",
    "layernorm_after",
)
LAYER: Final = (
    "attention.attention.key.weight",
    *(f"{module}.{leaf}" for module in BIASED for leaf in LEAVES),
)


@dataclass(frozen=True, kw_only=True)
class TransformersModel:
    """What the folder holds."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: tuple[str, ...]  # what transformers does otherwise


def to_transformers(weights: Weights, spec: ModelSpec, *, source: Path) -> TransformersModel:
    """The weights under transformers' names.

    Raises:
        CheckpointError: a model that transformers' VideoMAE cannot be.
    """
    obstacles = list(_obstacles(spec))
    if obstacles:
        raise CheckpointError(
            f"{source}: transformers' VideoMAE cannot be this model: {'; '.join(obstacles)}; "
            "--to onnx and --to torch can"
        )
    names = list(_names(spec))
    tensors = {}
    for ours, theirs in FAMILIES["transformers"].translate(names).take.items():
        parts = weights.tensors[ours].chunk(len(theirs))  # query, key and value are one matrix here
        tensors |= {name: part.clone() for name, part in zip(theirs, parts, strict=True)}
    return TransformersModel(
        config=model_config(weights, spec),
        preprocessor=preprocessor_config(spec),
        tensors=tensors,
        notes=tuple(_notes(spec)),
    )


def read_back(model: TransformersModel, weights: Weights, spec: ModelSpec, *, source: Path) -> float:
    """The largest difference between our outputs with all tokens and those of the model read by `convert`.

    What `convert` reads computes as transformers does, so this is what a user of transformers will see.
    """
    back = convert(Foreign(path=source, tensors=model.tensors, config=model.config), Hints()).weights
    assert back.tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in weights.tensors.items())
    ours, theirs = (_says(model_of(told, source=source), spec) for told in (weights, back))
    return float((ours - theirs).abs().max())


@torch.inference_mode()
def _says(module: VideoClassifier | MaskedAutoencoder, spec: ModelSpec) -> Tensor:
    """Logits from all tokens, or predictions of every other token from the rest."""
    clips = sample_clips(spec, 1)
    if isinstance(module, VideoClassifier):
        return module(clips, keep=1)
    ids = torch.arange(spec.grid.num_tokens)[None]
    return module(clips, selection=TokenSelection(ids[:, ::2], ids[:, 1::2])).prediction


def write_folder(folder: Path, model: TransformersModel) -> list[Path]:
    """Write the files; config.json comes last, so that a folder with it is whole."""
    written = [folder / name for name in (WEIGHTS, PREPROCESSOR, CONFIG)]
    write_atomically(written[0], lambda part: save_file(model.tensors, part, metadata={"format": "pt"}))
    for path, content in zip(written[1:], (model.preprocessor, model.config), strict=True):
        write_text(path, json.dumps(content, indent=2) + "\n")
    return written


def _obstacles(spec: ModelSpec) -> Iterator[str]:
    """What of a model has no place in a VideoMAE of transformers."""
    if spec.model.positions != "flat":
        yield f"{spec.model.positions} positions (it knows the flat ones only)"
    if spec.kind == "classifier" and spec.model.pooling == "class-attention":
        yield "class-attention pooling (it averages the tokens or takes the first)"
    if spec.heads:
        yield f"{len(spec.heads)} label heads (it has one)"
    if spec.model.embedding_layers > 1:
        yield f"an embedding of {spec.model.embedding_layers} convolutions (it has one)"
    if spec.model.tubelet[1] != spec.model.tubelet[2]:
        yield f"tubelets of {spec.model.tubelet} (its patches are square)"
    if isinstance(spec.target, PixelTargetSettings) and spec.target.frames == "half":
        yield "a decoder that predicts half of the frames"
    if isinstance(spec.target, TokenTargetSettings):
        yield "a decoder that predicts the codes of a tokenizer (it predicts pixels)"


def _notes(spec: ModelSpec) -> Iterator[str]:
    """What transformers does otherwise with the same weights."""
    if spec.kind == "pretrain":
        yield f"transformers selects no tokens: bool_masked_pos says what {spec.selection.strategy} would"
        if isinstance(spec.target, PixelTargetSettings) and spec.target.normalize == "token":
            yield "its loss normalises the channels of a tubelet one by one, this model all values together"
    elif spec.selection != AllTokens():
        counts = count_tokens(spec)
        yield (
            f"transformers encodes all {counts.total} tokens, this model was trained with {counts.visible}: "
            "its accuracy there is that of `everest eval --keep 1`; --to onnx and --to torch select inside"
        )
    norm = {"classifier": "fc_norm", "pretrain": "decoder.norm"}[spec.kind]
    averaged = spec.kind == "pretrain" or spec.model.pooling == "mean"
    if averaged and spec.norms.last_eps != TORCH_EPS:
        ours = spec.norms.last_eps
        yield (
            f"its last norm adds {TORCH_EPS:g} to the variance, this model's {ours:g}; for the same numbers "
            f"set model.{norm}.eps = {ours:g} after loading"
        )


def _names(spec: ModelSpec) -> Iterator[str]:
    """transformers' parameters of a model."""
    classifier, size = spec.kind == "classifier", spec.model.backbone_size
    pairs = ["videomae.embeddings.patch_embeddings.projection"]
    if classifier:
        pairs += ["classifier", "fc_norm" if spec.model.pooling == "mean" else "videomae.layernorm"]
    else:
        pairs += [
            "decoder.norm",
            "decoder.head",
            *(["videomae.layernorm"] if spec.norms.after_encoder else []),
        ]
        yield from ("mask_token", "encoder_to_decoder.weight")
    yield from (f"{module}.{leaf}" for module in pairs for leaf in LEAVES)
    stacks = {"videomae.encoder.layer": size.depth}
    if not classifier:
        stacks["decoder.decoder_layers"] = spec.model.decoder_depth
    for stack, depth in stacks.items():
        yield from (f"{stack}.{number}.{part}" for number in range(depth) for part in LAYER)
