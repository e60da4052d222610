"""Opens the checkpoints that a user names: run folders, files, hf:OWNER/NAME, timm:NAME, timm:NAME=FILE."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from everest.converters.convert import convert
from everest.converters.foreign_checkpoint import (
    CONFIG_FILE,
    IMAGE_EMBEDDING,
    INDEX_SUFFIX,
    WEIGHT_FILES,
    find_everest_file,
    image_weights_error,
    is_pickle,
    locate_checkpoint,
    read_foreign,
    refuse_broken_links,
)
from everest.converters.recognition import Hints
from everest.errors import CheckpointError
from everest.methods.strategies import ShippedStrategy
from everest.models.base import ClipModel
from everest.models.classifier import EncoderSpec
from everest.models.clip_spec import ClipSpec, ModelSpec
from everest.models.image_classifier import PixelSpec
from everest.models.mean import MeanSpec
from everest.models.positions import fit_learned_positions
from everest.models.spec import Transformer, read_model_spec
from everest.models.vit import with_tubelet_frames
from everest.system.events import Notify
from everest.system.hub import TIMM_PREFIX, split_timm
from everest.system.processes import warn_on_main, warn_on_main_once
from everest.system.run_folder import (
    BEST_FILE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    Which,
)
from everest.system.weights import Weights, load_tensors, read_weights, require_matching
from everest.system.weights_header import open_safetensors, read_header, require_transformer
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.tokenizer.spec import TokenizerSpec

# clips: any model but a tokenizer; transformer: any model with a token encoder
Kind = Literal["classifier", "clips", "transformer", "tokenizer"]
AnyModel = ClipModel | AdaptiveTokenizer
IMAGE_FRAMES: Final = 8  # heuristic: frames per video for weights of single images
# Heuristic: maximum pixels of a frame's longer side for weights of single images. With a ViT-S, a CPU takes
# two seconds for 8 frames of 224 pixels, and a third of that for frames of 140 pixels.
MAX_SIDE: Final = {"cpu": 144, "gpu": 224}
# In a folder of a run and of the model that was chosen.
CHOSEN_FOLDER: Final = "model"
TRAINED_FOLDER: Final = "finetune"
ONNX_SUFFIX: Final = ".onnx"  # suffix of exported files, which everest.checkpoints.graph opens


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A checkpoint in memory."""

    file: Path
    weights: Weights
    spec: ClipSpec | TokenizerSpec  # spec of `module`: the saved spec with the requested clip and selection
    module: AnyModel  # in eval mode, on the CPU

    @property
    def model(self) -> ClipModel:
        """The module of a checkpoint of any kind but a tokenizer."""
        assert not isinstance(self.module, AdaptiveTokenizer)
        return self.module

    @property
    def transformer(self) -> Transformer:
        """The module of a checkpoint with a token encoder; CheckpointError if it has none."""
        if isinstance(self.module, Transformer):
            return self.module
        raise wrong_kind(self.weights.settings["kind"], "transformer", source=self.file)


def find_weights(checkpoint: str | Path, *, which: Which | None = None, quiet: bool = False) -> Path:
    """Return the safetensors file of a run folder, a folder of a run and a model, a file or hf:OWNER/NAME.

    The license of a checkpoint from the hub is shown. A timm:NAME is returned unchanged.

    Args:
        which: the weights of a run folder, or of the run in a folder of a run and a model; None: the best on
            `data.val` if there are any, else the newest, or the model that was chosen.
        quiet: do not report which weights were chosen.
    """
    if is_timm_name(checkpoint):
        return Path(checkpoint)
    path = locate_checkpoint(str(checkpoint), notify=warn_on_main_once)
    if not any((path / name).exists() for name in WEIGHT_FILES):
        is_chosen = which is None and (path / CHOSEN_FOLDER / WEIGHTS_FILE).is_file()
        inner = path / (CHOSEN_FOLDER if is_chosen else TRAINED_FOLDER)
        path = inner if inner.is_dir() else path
    best = path / BEST_FILE
    if which != "newest" and best.is_file():
        if which is None and not quiet:
            step = read_header(best).step
            text = f"best weights on data.val, from step {step}; --which newest uses the last ones"
            warn_on_main(f"{best}: {text}")
        return best
    if which == "best" and path.is_dir():
        raise CheckpointError(f"{path}: no {BEST_FILE}, because the run had no data.val; use --which newest")
    files = [path / name for name in WEIGHT_FILES] if path.is_dir() else [path]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        refuse_broken_links(*files)
        problem = f"no {WEIGHTS_FILE} in it" if path.is_dir() else "no such checkpoint"
        fix = "name a run folder with saved weights, a .safetensors file, hf:OWNER/NAME or timm:NAME"
        raise CheckpointError(f"{path}: {problem}; {fix}")
    if is_pickle(file):
        raise CheckpointError(
            f"{checkpoint}: a pickle; first run "
            f"everest convert {shlex.quote(str(checkpoint))} --output FILE.safetensors; name weights of timm "
            f"{TIMM_PREFIX}NAME={checkpoint}"
        )
    return file


def is_timm_name(checkpoint: str | Path) -> bool:
    """Whether `checkpoint` names an image model: timm:NAME or timm:NAME=FILE."""
    return str(checkpoint).startswith(TIMM_PREFIX)


def find_recipe_beside(file: Path) -> Path | None:
    """Return the recipe of the run that wrote the weights `file`; None if there is none next to the file."""
    recipe = file.parent / RECIPE_FILE
    return recipe if not is_timm_name(file) and recipe.is_file() else None


def find_run_weights(file: Path) -> list[Path]:
    """Return a weights file and the other weights of its run, which no command may replace."""
    if is_timm_name(file):
        given_file = split_timm(str(file))[1]
        return [] if given_file is None else [given_file]
    names = (WEIGHTS_FILE, BEST_FILE) if find_recipe_beside(file) else ()
    return [file, *(file.with_name(name) for name in names if name != file.name)]


def open_weights(path: Path) -> Weights:
    """Read the path that `find_weights` returned; convert checkpoints of transformers and timm."""
    if is_timm_name(path):
        from everest.converters.timm_images import open_image_weights  # imported here: timm takes a second

        return open_image_weights(str(path))
    if path.suffix == ONNX_SUFFIX:
        raise CheckpointError(f"{path}: an ONNX file, which this command cannot read; name its checkpoint")
    is_index = path.name.endswith(INDEX_SUFFIX)
    if is_index or (find_everest_file(path) is None and (path.parent / CONFIG_FILE).is_file()):
        converted = convert(read_foreign(path), Hints())
        for note in converted.identity.notes:
            warn_on_main(f"{path}: {note}")
        return converted.weights
    with open_safetensors(path) as file:
        has_patches = IMAGE_EMBEDDING in file.keys()  # noqa: SIM118
        if has_patches and len(file.get_slice(IMAGE_EMBEDDING).get_shape()) == 4:  # (D, 3, p, q): images
            raise image_weights_error(path)
    return read_weights(path)


def open_encoder(checkpoint: str) -> tuple[Weights, ModelSpec]:
    """Read the weights of a checkpoint whose encoder a model may use, and their spec."""
    weights = open_weights(find_weights(checkpoint))
    return weights, read_model_spec(weights.settings, source=Path(checkpoint))


def open_model(
    checkpoint: str | Path,
    *,
    which: Which | None = None,
    kind: Kind | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    selection: ShippedStrategy | None = None,
    check: Callable[[ClipSpec], None] | None = None,
) -> LoadedModel:
    """Rebuild the module of a checkpoint.

    Args:
        kind: the only kind of model that is accepted; None: any kind.
        frames, size, selection: clip and token selection of a model on clips; None: the saved values, but
            for image weights the clip of `choose_clip`.
        check: raises if the spec of a model on clips does not suit the caller; called before the model is
            built.
    """
    file = find_weights(checkpoint, which=which)
    weights = open_weights(file)
    if kind not in (None, "clips", "transformer", weights.kind):
        raise wrong_kind(weights.kind, kind, source=file)
    if weights.kind == "tokenizer" and kind in (None, "tokenizer"):
        spec = TokenizerSpec.from_settings(weights.settings, source=file)
    else:
        read_spec = read_model_spec if kind == "transformer" else read_clip_spec
        spec = read_spec(weights.settings, source=file)
        if weights.classes and spec.only_head and len(weights.classes) != spec.num_classes:
            names = f"{len(weights.classes)} names of classes"
            raise CheckpointError(f"{file}: {names}, its head has {spec.num_classes}")
        default_frames, default_size = choose_clip(spec)
        spec = spec.for_clips(frames=frames or default_frames, size=size or default_size, strategy=selection)
        if check is not None:
            check(spec)
    module = build_model(spec, weights, source=file)
    if isinstance(module, ClipModel):
        module.file, module.class_names = file, weights.classes
    return LoadedModel(file=file, weights=weights, spec=spec, module=module)


def is_image_encoder(spec: ClipSpec) -> bool:
    """Whether the spec is that of another program's encoder of single images."""
    return isinstance(spec, EncoderSpec) and spec.frames == 1


def choose_clip(spec: ClipSpec, *, on_cpu: bool | None = None) -> tuple[int, tuple[int, int]]:
    """Return the frames and (height, width) of clips: as in training, or `IMAGE_FRAMES` for image weights.

    Args:
        on_cpu: whether the model will run on a CPU, with smaller frames; None: if this machine has no GPU.
    """
    if not (isinstance(spec, ModelSpec) and is_image_encoder(spec)):
        return spec.frames, spec.size
    if on_cpu is None:
        on_cpu = not torch.cuda.is_available()
    max_side = MAX_SIDE["cpu" if on_cpu else "gpu"]
    _, p, q = spec.model.tubelet
    height, width = (min(side, max_side // step * step) for side, step in zip(spec.size, (p, q), strict=True))
    return IMAGE_FRAMES, (height, width)


def read_clip_spec(settings: dict[str, Any], *, source: Path) -> ClipSpec:
    """Read the settings of a model on clips, whose kind they state."""
    spec_type = {"images": PixelSpec, "mean": MeanSpec}.get(str(settings.get("kind")))
    return (read_model_spec if spec_type is None else spec_type.from_settings)(settings, source=source)


def build_model(spec: ClipSpec | TokenizerSpec, weights: Weights, *, source: Path) -> AnyModel:
    """Return the module of `spec` with the tensors of `weights`, in eval mode.

    Learned positions are interpolated if the clip of `spec` differs from that of the weights.
    """
    tensors, empty_spec = weights.tensors, spec
    if isinstance(spec, ClipSpec):
        saved, empty_spec = read_clip_spec(weights.settings, source=source), spec.without_files()
        for prefix, part in spec.parts.items():  # each encoder of the model
            saved_part = saved.parts[prefix]
            if isinstance(part, ModelSpec) and isinstance(saved_part, ModelSpec):
                own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
                fitted = fit_tensors(own, saved_part, part, notify=warn_on_main)
                tensors = tensors | {f"{prefix}{name}": x for name, x in fitted.items()}
    with torch.device("meta"):  # wrong sizes are refused before they take memory
        require_matching(empty_spec.build().state_dict(), tensors, source=str(source))
    with torch.random.fork_rng(devices=[]):  # the file replaces these initial weights
        module = spec.build()
    load_tensors(module, tensors, source=str(source))
    return module.eval()


def fit_tensors(
    tensors: dict[str, Tensor], saved: ModelSpec, spec: ModelSpec, *, notify: Notify
) -> dict[str, Tensor]:
    """Fit the tensors of `saved` (learned positions, embedding) to the clips and tubelets of `spec`."""
    if saved.model.positions == "learned-separable" and saved.grid != spec.grid:
        notify(f"learned positions are interpolated from clips of {clip_shape(saved)} to {clip_shape(spec)}")
        tensors = fit_learned_positions(tensors, saved.grid, spec.grid)
    saved_frames, frames = saved.model.tubelet[0], spec.model.tubelet[0]
    if saved_frames != frames:
        notify(
            f"tubelets of {saved_frames} frames become tubelets of {frames}: the same tokens on still clips"
        )
        tensors = with_tubelet_frames(tensors, frames)
    return tensors


def clip_shape(spec: ClipSpec) -> str:
    """Format the frames, height and width of a model's clips for messages."""
    return f"{spec.frames} x {spec.size[0]} x {spec.size[1]}"


def wrong_kind(saved: str, kind: Kind, *, source: str | Path) -> CheckpointError:
    """Return the error for a model of kind `saved` where `kind` is needed; it names the command to run."""
    require_transformer(saved, source=source)
    article, command = ("an", "train VIDEOS") if saved == "encoder" else ("a", "finetune")
    fix = f"fine-tune it first: everest {command} --init CHECKPOINT"
    if kind == "tokenizer":
        fix = "train one: everest train-tokenizer --recipe RECIPE"
    return CheckpointError(f"{source}: {article} {saved} checkpoint where a {kind} one is needed; {fix}")
