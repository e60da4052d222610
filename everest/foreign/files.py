"""Reads checkpoints of other programs: their tensors, and the settings stored with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from everest.errors import MOST_SHOWN_OF_PATH, CheckpointError, EnvironmentProblem, shown
from everest.foreign.families import FAMILIES, family_of
from everest.foreign.pickles import IgnoredObject, load_pickle, refuse_wrong_download
from everest.foreign.preprocessor import PREPROCESSORS
from everest.system.hub import fetch, is_hub_name, license_of
from everest.system.json_text import read_json
from everest.system.weights import PICKLES
from everest.system.weights_header import FORMAT, read_metadata

CONFIG = "config.json"
MULTI_LABEL_PROBLEM = "multi_label_classification"  # problem_type of transformers
FRAME_SAMPLE_RATE = "frame_sample_rate"  # the stride, as examples of transformers call it
SHARDS = "model.safetensors.index.json"
# File names of transformers, the safe ones first; an index names the parts of a large one.
_WEIGHT_FILES = (
    "model.safetensors",
    SHARDS,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PICKLED = _WEIGHT_FILES[2:]
LONGEST_FILE_NAME = 255  # of Linux
_DEEPSPEED = "mp_rank_00_model_states.pt"
HALVED = (torch.bfloat16, torch.float16)
# Keys of the weights in the files of training programs (released programs: model, DeepSpeed: module,
# PySlowFast: model_state).
_CONTAINERS = ("model", "module", "state_dict", "model_state_dict", "model_state")
# Prefixes of the names: DDP, torch.compile, model hubs, mmaction, MME's two trainers.
_WRAPPERS = ("module.", "_orig_mod.", "encoder_q.encoder.model.", "encoder.model.", "model.", "backbone.")
_EMBEDDINGS = ("patch_embed.proj.weight", "patch_embeddings.projection.weight")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A checkpoint of another program. The names have no prefixes of wrappers around the model."""

    path: Path
    tensors: Mapping[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)  # transformers' config.json
    preprocessor: dict[str, Any] = field(default_factory=dict)  # transformers' preprocessor_config.json
    args: dict[str, Any] = field(default_factory=dict)  # the command line that a released program saved
    licence: str | None = None  # of the README next to it
    notes: tuple[str, ...] = ()


def locate(name: str, *, notify: Callable[[str], None]) -> Path:
    """Return the file or folder with this name; one of the hub is fetched, and `notify` gets its license."""
    return fetch(name, notify=notify) if is_hub_name(name) else Path(name)


def refuse_broken_links(*paths: Path) -> None:
    """Raise CheckpointError if one of the paths is a link to a file that does not exist."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path}: a link to {path.readlink()}, which does not exist; download the checkpoint again"
            )


def read_foreign(path: Path) -> Foreign:
    """Read a `.safetensors`, `.pth`, `.pt` or `.bin` file, or a folder of transformers or DeepSpeed.

    Raises:
        CheckpointError: a missing or damaged file, a pickle with code in it, or no weights inside.
    """
    if not path.exists():
        refuse_broken_links(path)
        raise CheckpointError(f"{path}: no such checkpoint; name a file, or a folder with {CONFIG}")
    folder = path if path.is_dir() else path.parent
    config, file = folder / CONFIG, path
    if path.is_dir():
        known = (_DEEPSPEED, *(_WEIGHT_FILES if config.is_file() else ()))
        file = next((path / name for name in known if (path / name).is_file()), path)
        if file == path:
            refuse_broken_links(config, *(path / name for name in _WEIGHT_FILES))
            weights = sorted(p.name for p in path.iterdir() if p.suffix in (*PICKLES, ".safetensors"))
            lacks = f"none of {', '.join(_WEIGHT_FILES)}" if config.is_file() else f"no {CONFIG}"
            hint = f"name the file itself: {path / weights[0]}" if weights else "and no other weights"
            raise CheckpointError(f"{path}: {lacks} in it; {hint}")
    tensors, args, notes = _load(file)
    tensors = unwrapped(tensors)
    halved = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.dtype in HALVED})
    if halved:
        notes.append(f"weights of {' and '.join(halved)} become float32, with the same values")
    family = FAMILIES.get(family_of(tensors) or "")
    has_config = family is not None and family.has_config  # else the files next to it may be of another one
    preprocessor = next((folder / name for name in PREPROCESSORS if (folder / name).is_file()), None)
    return Foreign(
        path=path,
        tensors=tensors,
        config=_json(config) if has_config and config.is_file() else {},
        preprocessor=_json(preprocessor) if has_config and preprocessor is not None else {},
        args=args,
        licence=license_of(folder),
        notes=tuple(notes),
    )


def own_file(path: Path) -> Path | None:
    """Return the weights at `path`, a file or run folder, if everest wrote them."""
    file = path / "model.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        return file if read_metadata(file).get("format") == FORMAT else None
    except (CheckpointError, EnvironmentProblem):
        return None


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Return the tensors, the saved command line, and notes."""
    if file.name.endswith(".index.json"):
        tensors: dict[str, Tensor] = {}
        for part in _parts(file):
            tensors |= _load(file.parent / part)[0]
        return tensors, {}, []
    if not file.is_file():
        raise CheckpointError(
            f"{shown(file, most=MOST_SHOWN_OF_PATH)}: missing; download the checkpoint again"
        )
    if file.suffix == ".safetensors":
        refuse_wrong_download(file)
        try:
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, {}, []  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(
                f"{file}: not a whole safetensors file ({shown(error)}); download or copy it again"
            ) from error
    if file.suffix not in PICKLES:
        known = ", ".join((".safetensors", *PICKLES))
        raise CheckpointError(f"{file}: not a name of a checkpoint; what can be read: {known}, or a folder")
    content = load_pickle(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, not named weights")
    for name in (*_CONTAINERS, None):
        state = content if name is None else content.get(name)
        if not isinstance(state, dict):
            continue
        tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
        if not tensors:
            continue
        for key, tensor in tensors.items():
            if tensor.layout is not torch.strided:
                raise CheckpointError(
                    f"{file}: {shown(key)} is stored as {tensor.layout}, not as a dense tensor; save it "
                    "with to_dense()"
                )
        args = content.get("args")
        args = args.state if isinstance(args, IgnoredObject) else args
        pairs = args.items() if isinstance(args, dict) else ()
        plain = {str(key): value for key, value in pairs if isinstance(value, (bool, int, float, str))}
        averaged = f"the averaged weights (model_ema) next to '{name}' are not used"
        return tensors, plain, [averaged] if "model_ema" in content else []
    keys = ", ".join(shown(key) for key in sorted(map(str, content))[:5]) or "nothing"
    raise CheckpointError(f"{file}: no weights in it under {', '.join(_CONTAINERS)} (it has: {keys})")


def _parts(index: Path) -> list[str]:
    """The files that an index of transformers names, all in its folder."""
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(part, str) for part in weight_map.values()):
        raise CheckpointError(f"{index}: its weight_map names no files; download it again")
    parts = sorted(set(weight_map.values()))
    for part in parts:
        if Path(part).name != part:
            raise CheckpointError(f"{index}: names a part outside its folder: {shown(part)}")
        if not part.endswith((".safetensors", *PICKLES)) or len(part) > LONGEST_FILE_NAME:
            raise CheckpointError(f"{index}: names a part that has no weights: {shown(part)}")
    return parts


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under names without the prefixes of DDP, compilers and hubs."""
    named = dict(tensors)
    while embeddings := [name for name in named if name.endswith(_EMBEDDINGS)]:
        embedding = min(embeddings, key=len)
        prefix = next((prefix for prefix in _WRAPPERS if embedding.startswith(prefix)), None)
        if prefix is None:
            break
        shorter = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
        if len(shorter) < len(named):  # two would become one
            break
        named = shorter
    return named


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({shown(error)}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a configuration; download it again")
    return content
