"""From a file or folder of another program to its tensors, and what it says of itself beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from everest.checkpoints.pickles import load_pickle, namespace, refuse_wrong_download
from everest.data.list_text import read_lines
from everest.errors import CheckpointError, EnvironmentProblem
from everest.system.hub import fetch, is_hub_name, license_of
from everest.system.weights import PICKLES
from everest.system.weights_header import FORMAT, read_metadata

CONFIG = "config.json"
SHARDS = "model.safetensors.index.json"
# What transformers calls its files, the safe ones first; an index names the parts of a large one.
_WEIGHT_FILES = (
    "model.safetensors",
    SHARDS,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PICKLED = _WEIGHT_FILES[2:]
_DEEPSPEED = "mp_rank_00_model_states.pt"
# Where training programs keep the weights in what they save (released programs: model, DeepSpeed: module).
_CONTAINERS = ("model", "module", "state_dict", "model_state_dict")
# What programs put before the names: DDP, torch.compile, model hubs, mmaction, MME's two trainers.
_WRAPPERS = ("module.", "_orig_mod.", "encoder_q.encoder.model.", "encoder.model.", "model.", "backbone.")
_EMBEDDINGS = ("patch_embed.proj.weight", "patch_embeddings.projection.weight")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A checkpoint of another program. Names are without what wraps the model."""

    path: Path
    tensors: Mapping[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)  # transformers' config.json
    args: dict[str, Any] = field(default_factory=dict)  # the command line that a released program saved
    licence: str | None = None  # of the README beside it
    notes: tuple[str, ...] = ()


def locate(name: str, *, notify: Callable[[str], None]) -> Path:
    """The file or folder that a user names; one of the hub is fetched, and `notify` told its licence."""
    return fetch(name, notify=notify) if is_hub_name(name) else Path(name)


def read_foreign(path: Path) -> Foreign:
    """Read a `.safetensors`, `.pth`, `.pt` or `.bin` file, or a folder as transformers writes it.

    Raises:
        CheckpointError: nothing there, damaged, a pickle with code in it, or no weights inside.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; name a file, or a folder with {CONFIG}")
    file = weight_file(path) if path.is_dir() else path
    config = file.parent / CONFIG
    raw, args, notes = _load(file)
    return Foreign(
        path=path,
        tensors=unwrapped(raw),
        config=_json(config) if config.is_file() else {},
        args=args,
        licence=license_of(file.parent),
        notes=tuple(notes),
    )


def weight_file(folder: Path) -> Path:
    """The weights in a folder of transformers or DeepSpeed.

    Raises:
        CheckpointError: it is neither; tells what is in it.
    """
    if (folder / _DEEPSPEED).is_file():
        return folder / _DEEPSPEED
    if (folder / CONFIG).is_file():
        for name in _WEIGHT_FILES:
            if (folder / name).is_file():
                return folder / name
    there = sorted(p.name for p in folder.iterdir() if p.suffix in (*PICKLES, ".safetensors"))
    lacks = f"no {CONFIG}" if not (folder / CONFIG).is_file() else f"none of {', '.join(_WEIGHT_FILES)}"
    hint = f"name the file itself: {folder / there[0]}" if there else "and no other weights"
    raise CheckpointError(f"{folder}: {lacks} in it; {hint}")


def own_file(path: Path) -> Path | None:
    """The weights at `path`, a file or run folder, if everest wrote them."""
    file = path / "model.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        ours = read_metadata(file).get("format") == FORMAT
    except (CheckpointError, EnvironmentProblem):
        return None
    return file if ours else None


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line in the order of the classes.

    Raises:
        DataError: no such file, or no text.
    """
    return tuple(line.strip() for _, line in read_lines(path))


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Tensors, saved command line, remarks."""
    if file.name.endswith(".index.json"):
        parts = sorted(set(_json(file).get("weight_map", {}).values()))
        tensors: dict[str, Tensor] = {}
        for part in parts:
            if Path(part).name != part:
                raise CheckpointError(f"{file}: names a part outside its folder: {part}")
            tensors |= _load(file.parent / part)[0]
        return tensors, {}, []
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; download the checkpoint again")
    if file.suffix == ".safetensors":
        return _safetensors(file), {}, []
    if file.suffix not in PICKLES:
        known = ", ".join((".safetensors", *PICKLES))
        raise CheckpointError(f"{file}: not a name of a checkpoint; what can be read: {known}, or a folder")
    return _in_container(load_pickle(file), file)


def _safetensors(file: Path) -> dict[str, Tensor]:
    refuse_wrong_download(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); download or copy it again"
        ) from error


def _in_container(content: Any, file: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, not named weights")
    notes = []
    for name in (*_CONTAINERS, None):
        state = content if name is None else content.get(name)
        if not isinstance(state, dict):
            continue
        tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
        if tensors:
            if "model_ema" in content:
                notes.append(f"averaged weights (model_ema) lie beside those of '{name}' and are not taken")
            return tensors, namespace(content.get("args")), notes
    inside = ", ".join(sorted(map(str, content))[:5]) or "nothing"
    raise CheckpointError(f"{file}: no weights in it under {', '.join(_CONTAINERS)} (it has: {inside})")


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under names without DDP's, compilers' and hubs' prefixes."""
    names = {name: name for name in tensors}  # ours to theirs
    while prefix := _wrapper(names):
        shorter = {name.removeprefix(prefix): theirs for name, theirs in names.items()}
        if len(shorter) < len(names):  # two would become one
            break
        names = shorter
    return {name: tensors[theirs] for name, theirs in names.items()}


def _wrapper(names: Iterable[str]) -> str | None:
    embeddings = [name for name in names if name.endswith(_EMBEDDINGS)]
    if not embeddings:
        return None
    first = min(embeddings, key=len)
    return next((prefix for prefix in _WRAPPERS if first.startswith(prefix)), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a configuration; download it again")
    return content
