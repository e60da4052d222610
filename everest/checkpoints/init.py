"""Finds the weights that a run starts from, and loads them into its new model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from everest.checkpoints.describe import as_yaml, describe_pixel_mismatch
from everest.checkpoints.load import clip_shape, find_weights, fit_tensors, is_timm_name, open_encoder
from everest.config.recipe import load_recipe, recipe_for_run
from everest.config.run_options import RunOptions
from everest.config.settings import Recipe
from everest.converters.foreign_checkpoint import find_everest_file
from everest.errors import CheckpointError, OptionError, shorten
from everest.models.clip_spec import ModelSpec
from everest.models.mae import AutoencoderSpec
from everest.models.spec import read_model_spec
from everest.system.events import Notify
from everest.system.files import absolute_keeping_links
from everest.system.hub import absolute_name
from everest.system.run_folder import (
    BEST_FILE,
    ENVIRONMENT_FILE,
    RESTORE_FIX,
    WEIGHTS_FILE,
    DecoderStart,
    InitFile,
    RunFolder,
)
from everest.system.text import damage_errors
from everest.system.weights import Weights, load_tensors, require_matching, state_hash
from everest.system.weights_header import read_header

Tensors = dict[str, Tensor]  # by parameter name
LAST_NORM: Final = "encoder.norm."  # the norm after the blocks; some encoders lack it
SIZE_SETTINGS: Final = ("backbone", "width", "depth", "heads", "mlp_width", "tubelet", "positions")
DECODER_TENSORS: Final = ("decoder.", "encoder_to_decoder.", "mask_token")
# Encoder settings that must equal those of the weights. `attention` may differ: both kinds use the same
# weights, and joint attention relates time indices that image weights see separately.
ENCODER_SETTINGS: Final = (
    *("class_token", "registers", "rotary", "norm_before", "mlp", "gelu", "input", "embedding_layers"),
)


def recipe_for_init(options: RunOptions) -> Recipe:
    """Read the recipe of a run with its changes and, if it starts from image weights, with their encoder.

    The recipe of other weights has their encoder, but image weights have none. Attention and decoder stay as
    in the recipe, and frames are cut to whole patches; `overrides` win.
    """
    changes = [*(options.overrides or ())]
    if options.init is not None and is_timm_name(absolute_name(options.init)):
        init_file, resumed = init_of_run(options)
        model = read_init(init_file, resumed=resumed).saved.model
        size = load_recipe(options.recipe_file, overrides=changes, consistent=False).data.frame_size
        patches = [
            step * max(1, round(side / step)) for side, step in zip(size, model.tubelet[1:], strict=True)
        ]
        own = {f"model.{key}": getattr(model, key) for key in (*SIZE_SETTINGS, *ENCODER_SETTINGS)}
        own |= {} if patches == [*size] else {"data.size": patches}
        changes = [*(f"{key}={as_yaml(value)}" for key, value in own.items()), *changes]
    return recipe_for_run(options.recipe_file, data=options.data, overrides=changes)


def init_of_run(options: RunOptions) -> tuple[InitFile, RunFolder | None]:
    """The weights of --init, and the folder that the run resumes if there is a run."""
    assert options.init is not None
    output, overwrite = options.output, options.overwrite
    resumed = None if output is None or overwrite else RunFolder(output)
    found = find_init(options.init, output=output, overwrite=overwrite, decoder=options.decoder)
    return found, resumed


def find_init(
    name: str | Path, *, output: Path | None, overwrite: bool, decoder: DecoderStart | None = None
) -> InitFile:
    """Find the weights of --init.

    Args:
        output: the run folder. A run that is resumed keeps the weights that it started from, even if they
            have been moved since.
    """
    name = absolute_name(name)
    run = None if output is None or overwrite else RunFolder(output)
    environment = run.read_environment() if run is not None and run.has_environment() else None
    if environment is not None and environment.init_name == name:
        return InitFile(name=name, file=str(environment.init), decoder=decoder)
    if is_timm_name(name):
        return InitFile(name=name, file=name, decoder=decoder)
    path = absolute_keeping_links(find_weights(name))
    if output is not None and output.resolve() in (path.parent, path.resolve().parent):
        raise OptionError(f"output {output}: holds the weights of --init; choose another folder")
    return InitFile(name=name, file=str(path), decoder=decoder)


@dataclass(frozen=True, kw_only=True)
class InitWeights:
    """The weights that a run starts from."""

    init_file: InitFile
    origin: dict[str, Any]  # describes the weights, for env.json and the header of the run's weights
    saved: ModelSpec  # the spec of the model whose weights were saved
    weights: Weights | None  # None if the run has a saved state, which holds all tensors

    def notice(self) -> str:
        """Return a notice with the name and step of the weights, and the number of steps of their run."""
        file, name, step = Path(self.init_file.file), Path(self.init_file.name), self.origin.get("step")
        label = name.relative_to(Path.cwd()) if name.is_relative_to(Path.cwd()) else self.init_file.name
        run = RunFolder(file.parent)
        is_of_run = file.name in (WEIGHTS_FILE, BEST_FILE) and run.has_environment()
        plan = run.read_environment().plan if is_of_run else None
        of_total = "" if plan is None else f" of {plan.steps}"
        of_total += " of a run that is not finished" if plan is not None and plan.finished is None else ""
        progress = f", step {step}{of_total}" if step else ""
        return f"weights: encoder of {label}{progress}"

    def describe_rate_mismatch(self, fps: float | None) -> str | None:
        """Return a notice if the weights were trained at a frame rate other than `fps`, else None."""
        trained_fps = (self.origin.get("clip") or {"fps": fps}).get("fps")
        if trained_fps == fps:
            return None
        rate = "every frame" if trained_fps is None else f"{trained_fps:g} frames per second"
        return f"the weights were trained on {rate} of a video; use --set data.fps={as_yaml(trained_fps)}"

    def adapt_spec(self, spec: ModelSpec) -> ModelSpec:
        """Return the spec of a new model with the properties that it must share with the weights."""
        spec = spec.with_positions_of(self.saved.trained_grid)
        keeps_norms = spec.kind == "pretrain" and self.saved.kind != "classifier"
        return replace(spec, norms=self.saved.norms) if keeps_norms else spec


def check_init(init: InitFile, *, resumed: RunFolder | None) -> None:
    """Check the weights of `init` before a run; only the header of everest weights is read."""
    file = find_everest_file(Path(init.file))
    if file is None or (resumed is not None and resumed.state.is_dir()):
        read_init(init, resumed=resumed)
    else:
        read_model_spec(read_header(file).settings, source=file)


def read_init(init: InitFile, *, resumed: RunFolder | None) -> InitWeights:
    """Read the weights of `init`, unless the run that is resumed already has a state."""
    if resumed is not None and any(resumed.state.glob("step-*.safetensors")):
        with damage_errors(resumed.path / ENVIRONMENT_FILE, fix=RESTORE_FIX):
            origin = {**(resumed.read_environment().origin or {})}
            saved = read_model_spec(origin["settings"], source=resumed.path)
        return InitWeights(init_file=init, origin=origin, saved=saved, weights=None)
    weights, saved = open_encoder(init.file)
    origin = {"file": init.file, "kind": weights.kind, "recipe": weights.recipe, "step": weights.step}
    origin["sha256"] = state_hash(weights.tensors)
    origin |= {"settings": weights.settings, "clip": weights.clip}
    parent = weights.origin and {key: value for key, value in weights.origin.items() if key != "settings"}
    if parent is not None and parent.get("file") in (init.file, str(Path(init.file).parent)):
        origin = {**parent, **origin, "step": None, "origin": None}  # converted: no step or origin
    else:
        origin["origin"] = parent
    return InitWeights(init_file=init, origin=origin, saved=saved, weights=weights)


def load_init(
    model: nn.Module,
    spec: ModelSpec,
    init: InitWeights,
    *,
    classes: tuple[str, ...] | None = None,
    notify: Notify,
) -> None:
    """Load the weights into the new model of a stage; parts that they lack or that do not fit start fresh.

    The clip may be longer or larger than in training: positions are computed, or interpolated if learned.
    The frames per tubelet may be a multiple or a fraction of those in the weights.

    Args:
        classes: the class names of the run's data; None: classes have no names.
        notify: receives notices of the parts that are kept or start fresh.
    """
    weights, saved, source = init.weights, init.saved, init.init_file.file
    if weights is None:
        return
    _check_encoder(saved, spec, source=source, notify=notify)
    initial, tensors = model.state_dict(), fit_tensors(weights.tensors, saved, spec, notify=notify)
    loaded = _take_encoder(initial, tensors, init, notify=notify)
    positions, grids = spec.model.positions, [(x.grid.h, x.grid.w) for x in (saved, spec)]
    if grids[0] != grids[1] and positions in ("flat", "separable"):
        shapes = f"{clip_shape(spec)} instead of {clip_shape(saved)}"
        fix = f"model.positions=interpolated-{positions} keeps them"
        notify(f"positions are computed again for clips of {shapes}; {fix}")
    if spec.kind == "classifier":
        if saved.kind != "classifier":
            tensors = {name.replace(LAST_NORM, "norm."): tensor for name, tensor in tensors.items()}
        parts = _classifier_parts(init, spec, classes)
    else:
        parts = _pretraining_parts(init, spec)
    for part in parts:
        loaded |= _take_part(part, initial, tensors, init, notify=notify)
    load_tensors(model, initial | loaded, source=source)


def _take_encoder(initial: Tensors, tensors: Tensors, init: InitWeights, *, notify: Notify) -> Tensors:
    """Return the saved tensors of the encoder; CheckpointError if they do not fit the `initial` tensors."""
    # The norm after the blocks may be in the weights only, or in the model only.
    norm_names = {name for name in initial.keys() ^ tensors.keys() if name.startswith(LAST_NORM)}
    expected, loaded = (
        {name: x for name, x in each.items() if name.startswith("encoder.") and name not in norm_names}
        for each in (initial, tensors)
    )
    require_matching(expected, loaded, source=init.init_file.file)
    if norm_names & initial.keys():
        notify(f"the norm after the encoder starts fresh: {init.saved.kind} weights have none")
    return loaded


def _check_encoder(saved: ModelSpec, spec: ModelSpec, *, source: str, notify: Notify) -> None:
    """Refuse weights of a different encoder; if only the pixel statistics differ, send a notice."""
    if saved.pixels != spec.pixels:
        mismatch = f"{source}: {describe_pixel_mismatch(saved.pixels, spec.pixels)}"
        if saved.channels != spec.channels:
            raise CheckpointError(mismatch)
        notify(mismatch)
    if changes := " --set ".join(compare_settings(saved, spec)):
        raise CheckpointError(f"{source}: its encoder differs from the recipe's; use --set {changes}")


# A part of a model beside its encoder: its title, the prefixes of its tensors, and the reason why it cannot
# be kept. Without a reason (None), it is kept unless its size differs.
Part = tuple[str, tuple[str, ...], str | None]


def _take_part(
    part: Part, initial: Tensors, tensors: Tensors, init: InitWeights, *, notify: Notify
) -> Tensors:
    """Return the saved tensors of a part, none if it starts fresh; CheckpointError if it must be kept."""
    title, prefixes, problem = part
    names, saved = ({name for name in each if name.startswith(prefixes)} for each in (initial, tensors))
    if not saved:
        problem = f"{init.saved.kind} weights have none"
    elif problem is None and names - saved:
        raise CheckpointError(f"{init.init_file.file}: damaged, it has no {min(names - saved)}")
    elif problem is None and (names != saved or any(initial[x].shape != tensors[x].shape for x in names)):
        problem = "it has another size"
    if prefixes == DECODER_TENSORS and init.init_file.decoder == "keep" and (problem or not names):
        problem = f"its decoder cannot be kept: {problem}" if names else "views have no decoder to keep"
        raise CheckpointError(f"{init.init_file.file}: {problem}; use --decoder fresh")
    if names:
        notify(f"{title} {'is also kept' if problem is None else f'starts fresh: {problem}'}")
    return {name: tensors[name] for name in names} if problem is None else {}


def _classifier_parts(init: InitWeights, spec: ModelSpec, classes: tuple[str, ...] | None) -> Iterator[Part]:
    """Yield the parts of a classifier that may be kept."""
    saved, problem = init.saved, None
    if saved.kind != "classifier":
        if spec.model.pooling in ("first", "mean-change"):  # these normalize tokens, `mean` their average
            yield "the last norm", ("norm.",), None
        return
    if saved.model.pooling != spec.model.pooling:
        problem = f"the checkpoint has {saved.model.pooling} pooling, the recipe {spec.model.pooling}"
    yield "the pooling", ("norm.", "pool."), problem
    saved_heads, heads = (
        ", ".join(f"{head.name} {head.task} ({head.outputs})".strip() for head in model.heads)
        for model in (saved, spec)
    )
    saved_classes = init.weights.classes if init.weights else None
    pairs = enumerate(zip(saved_classes or (), classes or (), strict=False))
    renamed = [(label, old, new) for label, (old, new) in pairs if old != new]
    if saved_heads != heads:
        problem = problem or f"the checkpoint predicts {saved_heads}, the recipe {heads}"
    elif renamed:
        label, old, new = renamed[0]
        other = f"class {label} is '{shorten(old)}' in the checkpoint, '{shorten(new)}' in the data"
        problem = problem or other
    yield "the head", ("head.",), problem


def _pretraining_parts(init: InitWeights, spec: ModelSpec) -> Iterator[Part]:
    """Yield the parts of a pre-training model that may be kept."""
    saved, problem = init.saved, None
    if init.init_file.decoder == "fresh":
        problem = "requested by --decoder fresh"
    yield "the layer that predicts a camera's motion", ("camera_head.",), problem
    yield "the projector", ("projector.",), problem
    if problem is None and isinstance(saved, AutoencoderSpec) and isinstance(spec, AutoencoderSpec):
        keys = [f"decoder_{part}" for part in ("depth", "width", "heads")]
        old, new = (vars(x.model) | asdict(x.model.backbone_size) for x in (saved, spec))
        if changes := " ".join(f"--set model.{key}={old[key]}" for key in keys if old[key] != new[key]):
            problem = f"it needs {changes}"
        elif _identify_targets(saved) != _identify_targets(spec):
            problem = "it predicts other targets"
    yield "the decoder", DECODER_TENSORS, problem


def _identify_targets(spec: AutoencoderSpec) -> tuple[object, ...]:
    """Return what a decoder predicts: the target without paths, and the hash of its teacher or tokenizer."""
    network = spec.tokenizer if spec.target.needs_tokenizer else spec.teacher
    settings = {key: value for key, value in vars(spec.target).items() if key not in ("cache", "teacher")}
    return type(spec.target), settings, network and network.sha256


def compare_settings(saved: ModelSpec, spec: ModelSpec) -> Iterator[str]:
    """Yield the settings that a recipe needs to match the encoder of `saved`, in the form of --set."""
    needed, given = saved.model, spec.model
    sizes = [(s.width, s.depth, s.heads, s.mlp) for s in (needed.backbone_size, given.backbone_size)]
    keys = ENCODER_SETTINGS
    if sizes[0] != sizes[1]:
        keys = ("backbone", "width", "depth", "heads", "mlp_width", *ENCODER_SETTINGS)
    needed_frames, frames = needed.tubelet[0], given.tubelet[0]
    fits = needed_frames % frames == 0 or frames % needed_frames == 0
    if not fits or needed.tubelet[1:] != given.tubelet[1:]:
        yield f"model.tubelet={as_yaml((frames if fits else needed_frames, *needed.tubelet[1:]))}"
    if given.positions not in (needed.positions, f"interpolated-{needed.positions}"):
        yield f"model.positions={needed.positions}"
    for key in keys:
        if getattr(needed, key) != getattr(given, key):
            yield f"model.{key}={as_yaml(getattr(needed, key))}"
