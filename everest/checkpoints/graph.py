"""Models as graphs for other programs, and exported ONNX classifiers opened as models.

The selection of tokens is part of the graph, and the graph takes any number of clips. Its file
(`everest.checkpoints.graph_files`) describes it, in its metadata.

B batch, C channels, T frames, H W pixels, K kept tokens.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.checkpoints.describe import find_training_clip, measure_training_seconds
from everest.checkpoints.load import LoadedModel, find_recipe_beside, read_clip_spec
from everest.config.heads import MULTI_LABEL, Head, head_settings
from everest.config.recipe import load_recipe
from everest.data.frames import SAMPLINGS
from everest.data.views import ClipFormat
from everest.errors import CheckpointError, EnvironmentProblem, RecipeError, shorten
from everest.methods.grid import TokenGrid
from everest.methods.strategies import AllTokens
from everest.models.base import ClipModel, PretrainingModel
from everest.models.classifier import Classifier, SelectingModel, VideoEncoder, outputs_of
from everest.models.clip_spec import ClipSpec, ModelSpec
from everest.models.cost import count_tokens
from everest.models.image_classifier import NO_TOKENS
from everest.models.pooling import NUM_STATISTICS
from everest.system.text import MAX_REASON_LENGTH, parse_json

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT: Final = "frames"
KEPT_IDS: Final = "kept"
TRAINING: Final = "training"  # key of the metadata
INSTALL_FIX: Final = "run `pip install 'everest-video[export]'`"
GraphPrecision = Literal["fp32", "int8"]  # precision of the encoder's blocks; all else is float32
# Heuristic: a number whose mean is more stds away from 0 is compared relative to that mean (rounding).
MEAN_IN_STDS: Final = 500.0


class Graph(nn.Module):
    """Normalized clips (B, C, T, H, W) to outputs (B, outputs) and the ids (B, K) of the encoded tokens.

    Without a selection of tokens, or with several models, the graph has no ids.

    The outputs of an encoder are features; those of a classifier are the logits of its classes, or numbers in
    the unit of the labels.

    Args:
        spec: the spec of the exported model.
        precision: the precision of the file; the graph itself is float32.
    Attributes:
        outputs: the names of the outputs.
        unit: (outputs,) or (1,): outputs are divided by this unit before they are compared.
        head_widths: the number of outputs of each head; for an encoder, the width of its features.
        metadata: the metadata of the file; JSON unless a value is a string. `make_graph` fills it.
    """

    std: Tensor  # (outputs,) 1 for a class; (1,) for an encoder
    mean: Tensor  # (outputs,) 0 for a class; (1,) for an encoder

    def __init__(self, model: ClipModel, spec: ClipSpec, precision: GraphPrecision) -> None:
        super().__init__()
        self.model, self.spec, self.precision = model, spec, precision
        heads = model.heads if isinstance(model, Classifier) else ()
        tasks = {head.task for head in heads}
        name = "values" if tasks == {"regression"} else "logits" if tasks else "features"
        self.outputs = (
            (name, KEPT_IDS) if isinstance(spec, ModelSpec) and spec.kind != "pretrain" else (name,)
        )
        self.head_widths = [head.outputs for head in heads]
        if isinstance(model, SelectingModel):
            self.head_widths = self.head_widths or [NUM_STATISTICS * model.encoder.width]
        output_heads = [head for head in heads for _ in range(head.outputs)] or [Head(outputs=1)]
        self.register_buffer("std", torch.tensor([head.std for head in output_heads]), persistent=False)
        self.register_buffer("mean", torch.tensor([head.mean for head in output_heads]), persistent=False)
        # A float32 number has 7 digits: two programs may round the last digit of the mean differently.
        self.unit = torch.maximum(self.std, self.mean.abs() / MEAN_IN_STDS)
        self.metadata: dict[str, str] = {}

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(self.model, SelectingModel):
            return (self.model(frames) * self.std + self.mean,)
        ids, tokens = self.model.encode_kept(frames)
        outputs = self.model.head(self.model.pooled(tokens, ids))
        return (outputs * self.std + self.mean, ids)[: len(self.outputs)]


def make_graph(loaded: LoadedModel, *, keep: float | None, precision: GraphPrecision = "fp32") -> Graph:
    """Make a model ready for export. With `keep`, the selection of `loaded` itself changes.

    Args:
        keep: the fraction of tokens that a classifier or an encoder encodes; None: as in training.
        precision: see `Graph`.
    """
    spec, model = loaded.spec, loaded.model
    assert isinstance(spec, ClipSpec)
    if isinstance(model, PretrainingModel):
        assert isinstance(spec, ModelSpec)
        if keep is not None:
            raise RecipeError("--keep: a pre-trained model encodes all tokens; --keep goes with a classifier")
        with torch.device("meta"):  # drops the decoder; the encoder encodes all tokens, as in `extract`
            encoder = VideoEncoder(replace(spec, selection=AllTokens()))
        encoder.encoder, model = model.encoder, encoder
    elif keep is not None:
        if not isinstance(spec, ModelSpec):
            reason = NO_TOKENS if spec.num_tokens is None else "the members of a mean keep tokens as trained"
            raise RecipeError(f"--keep {keep:g}: {reason}; leave it out")
        assert isinstance(model, SelectingModel)
        spec = replace(spec, selection=spec.selection.at_evaluation(keep))
        try:
            count_tokens(spec)
        except RecipeError as error:
            raise RecipeError(f"--keep {keep:g}: {error}") from error
        model.strategy = spec.selection
    graph, weights, clip = Graph(model, spec, precision).eval(), loaded.weights, find_training_clip(loaded)
    heads = [  # what each head predicts, the mean and std of numbers, and choices made on data.val
        {"name": head.name, "task": head.task, "outputs": head.outputs}
        | ({"mean": head.mean, "std": head.std} if head.task == "regression" else {})
        | ({"thresholds": list(head.thresholds)} if head.task == MULTI_LABEL else {})
        | ({} if head.alarm is None else {"alarm": asdict(head.alarm)})
        for head in spec.heads
    ]
    sampled = {key: getattr(clip, key, None) for key in ("stride", "sampling", "fps")}  # null if not stated
    recipe_file = find_recipe_beside(loaded.file) if weights.kind == "classifier" else None
    sampled["seconds"] = recipe_file and measure_training_seconds(
        load_recipe(recipe_file, imports=False).data
    )
    layout = f"batch, {'RGB' if spec.channels == 3 else 'luma'}, frames, height, width"
    metadata: dict[str, Any] = {  # for other programs, and for `ExportedClassifier`
        **{"format": "everest", "kind": weights.kind, "recipe": weights.recipe, "step": weights.step},
        **{"precision": precision, "settings": spec.dump(), "classes": weights.classes},
        **{"heads": heads or None, "mean": spec.pixels.mean, "std": spec.pixels.std},
        "clip": {"frames": spec.frames, **sampled, "height": spec.size[0], "width": spec.size[1]},
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "layout": layout,
            "values": "(pixel / 255 - mean) / std",
        },
    }
    graph.metadata = {key: x if isinstance(x, str) else json.dumps(x) for key, x in metadata.items()}
    return graph


def sample_pixels(spec: ClipSpec, batch: int) -> Tensor:
    """Return (batch, C, T, H, W) uint8 noise, the same at every call, on which exports are compared.

    The strength of the noise varies by token. With uniform noise all tokens would be equally important up to
    rounding errors, which differ between libraries. Half of the positions, drawn for each clip, are still:
    they repeat the first time index. Their tokens are equally important, so the first in token order must be
    kept.
    """
    generator = torch.Generator().manual_seed(batch)
    grid = max(spec.token_grids, key=lambda grid: grid.num_tokens, default=TokenGrid(t=spec.frames, h=4, w=4))
    strength = torch.rand(batch, 1, grid.t, grid.h, grid.w, generator=generator)
    strength = F.interpolate(strength, size=(spec.frames, *spec.size))  # (batch, 1, T, H, W)
    noise = torch.rand(batch, spec.channels, spec.frames, *spec.size, generator=generator)
    pixels = (256 * strength * noise).to(torch.uint8)
    positions = (
        torch.rand(batch, grid.num_positions, generator=generator).argsort(dim=1) < grid.num_positions // 2
    )
    is_still = F.interpolate(positions.view(batch, 1, grid.h, grid.w).float(), size=spec.size).bool()
    repeated = pixels[:, :, : spec.frames // grid.t].repeat(1, 1, grid.t, 1, 1)
    return torch.where(is_still.unsqueeze(2), repeated, pixels)


class ExportedClassifier(Classifier):
    """An exported classifier, which computes on the CPU.

    Attributes:
        spec: the spec of the exported model, with the token selection of the file.
        clip: the format of its clips; the stride is 1 if the file does not state it.
        clip_seconds: the median length of its training clips; None if the file does not state it.
        knows_stride: whether the file states the stride of its clips.
        precision: the precision of the network, fp32 or int8.
        training_facts: further facts about its training, by name, if the file states any.
    """

    def __init__(self, file: Path, session: InferenceSession, metadata: dict[str, str]) -> None:
        super().__init__()
        settings, classes, clip = (parse_json(metadata[name]) for name in ("settings", "classes", "clip"))
        self.file, self._session = file, session
        self.spec = read_clip_spec(settings, source=file)
        self.heads, self.pixels = self.spec.heads, self.spec.pixels
        self.class_names = None if classes is None else tuple(classes)
        has_all_names = classes is None or not self.spec.only_head or len(classes) == self.num_classes
        self.precision = metadata["precision"]
        self.training_facts: dict[str, Any] = parse_json(metadata.get(TRAINING, "{}"))
        self.clip_seconds: float | None = clip.get("seconds")
        self.knows_stride = clip["stride"] is not None
        self._clip = ClipFormat(
            frames=self.spec.frames,
            stride=clip["stride"] or 1,
            size=self.spec.size,
            sampling=clip["sampling"] or "dense",
            fps=clip["fps"],
            mean=self.spec.pixels.mean,
            std=self.spec.pixels.std,
        )
        if not has_all_names or self.clip.sampling not in SAMPLINGS:
            raise ValueError("other classes than its outputs, or an unknown sampling")

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def clip(self) -> ClipFormat:
        return self._clip

    @property
    def overrides(self) -> list[str]:
        """The clips and heads as settings of a recipe, with the center view of a video."""
        clip, head = self.clip, self.spec.only_head
        values: dict[str, Any] = {
            **{"data.frames": clip.frames, "data.size": list(clip.size), "data.fps": clip.fps},
            **{"data.channels": clip.channels, "data.mean": list(clip.mean), "data.std": list(clip.std)},
            **{"finetune.stride": clip.stride, "finetune.sampling": clip.sampling},
            **{"eval.clips": 1, "eval.crops": 1, "data.heads": head_settings(self.heads)},
        }
        if head is not None:
            values["data.task"] = head.task
        # Only the clips count here; without tubelets, a clip is one token. No stage may lack tokens.
        whole_clip = (clip.frames, *clip.size)
        values["model.tubelet"] = self.spec.model.tubelet if isinstance(self.spec, ModelSpec) else whole_clip
        every_token = {"strategy": "sampled", "keep_ratio": 1, "visible_ratio": None}
        values |= {"pretrain.objective": "views", "pretrain.selection": every_token}
        values["finetune.selection"] = {"strategy": "all"}
        return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]

    def forward(self, frames: Tensor, *, keep: float | None = None) -> Tensor:
        """Compute the outputs (B, outputs) of clips (B, C, T, H, W), bytes or normalized, on the CPU.

        Raises:
            ValueError: `keep` is given; the file keeps its tokens as it was exported.
        """
        if keep is not None:
            raise ValueError(f"keep={keep}: an exported file keeps the tokens of its export")
        clips = self.pixels.normalize(frames) if frames.dtype == torch.uint8 else frames
        clips = clips.cpu().contiguous()
        return torch.from_numpy(self._session.run(None, {INPUT: clips.numpy()})[0])

    def outputs(self, logits: Tensor) -> Tensor:
        """Convert logits (..., outputs) to float32 probabilities; numbers already have their unit."""
        return outputs_of(logits, tuple(replace(head, mean=0.0, std=1.0) for head in self.heads))


def open_exported(file: Path) -> ExportedClassifier:
    """Open a classifier that `everest export --to onnx` wrote. It uses as many threads as torch."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentProblem(f"{file}: needs onnxruntime; {INSTALL_FIX}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):  # onnxruntime's errors share no base class
            raise
        # "[ONNXRuntimeError] : 1 : FAIL : Load model from FILE failed:/x.cc:1 f(A&, B&) Unsupported …"
        reason = str(error).strip().partition("\n")[0].rpartition(" failed:")[2]
        reason = shorten(
            reason.partition(") ")[2] if reason.startswith("/") else reason, most=MAX_REASON_LENGTH
        )
        raise CheckpointError(f"{file}: onnxruntime cannot read it ({reason}); {INSTALL_FIX}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    inputs, outputs = ([each.name for each in part] for part in (session.get_inputs(), session.get_outputs()))
    is_classifier = metadata.get("format") == "everest" and metadata.get("kind") == "classifier"
    takes_clips = inputs == [INPUT] and len(session.get_inputs()[0].shape) == 5  # (B, C, T, H, W)
    if not (is_classifier and takes_clips) or outputs[1:] not in ([KEPT_IDS], []):
        raise CheckpointError(
            f"{file}: not an ONNX classifier exported by everest; export a fine-tuned run with "
            "everest export --to onnx"
        )
    try:
        return ExportedClassifier(file, session, metadata)
    except (KeyError, TypeError, ValueError) as error:
        reason = shorten(error) if isinstance(error, ValueError) else "a value is missing, or of another type"
        raise CheckpointError(f"{file}: its metadata is damaged ({reason}); export it again") from error
