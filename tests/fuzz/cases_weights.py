"""Weights files of everest, and pickles of other programs."""

import io
from pathlib import Path
from random import Random

from .bases import Bases
from .case import Case, Kind, case_of
from .mutations import damage_bytes
from .safetensors_file import damage_file

CODES = frozenset({2, 4, 6})
CPU = "--gpus cpu -q"


def make_weights(rng: Random, folder: Path, bases: Bases) -> Case:
    """A damaged `model.safetensors`, alone or in its run folder, and a command that opens it."""
    bases.copy("clips", folder)
    name = rng.choice(("classifier", "classifier", "pretrained"))
    if rng.random() < 0.1:
        return _make_pickle(rng, folder, bases)
    data = damage_file(rng, (bases.root / name / "model.safetensors").read_bytes())
    if rng.random() < 0.5:
        bases.copy(name, folder)
        (folder / name / "model.safetensors").write_bytes(data)
        checkpoint = name
    else:
        checkpoint = "my.safetensors"
        (folder / checkpoint).write_bytes(data)
    seen = "--recipe recipe.yaml" if rng.random() < 0.5 else ""
    clip = f"clips/clip0.mp4 -c {checkpoint}"
    bases.copy("recipe.yaml", folder)
    commands = [
        *[f"predict {clip} {CPU} --json {seen}"] * 2,
        f"eval -c {checkpoint} -r recipe.yaml --gpus cpu -q --json",
        f"finetune -r recipe.yaml --init {checkpoint} --gpus cpu --dry-run -q",
        f"convert {checkpoint} -o out/x.safetensors",
        f"convert {checkpoint} --inspect --json",
        f"extract {clip} -o out/x.safetensors {CPU} {seen}",
        f"select-frames {clip} --frames 4 --stride 1 --json",
    ]
    return case_of(rng.choice(commands), CODES)


def _make_pickle(rng: Random, folder: Path, bases: Bases) -> Case:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(bases.root / "pretrained" / "model.safetensors")
    renamed = {f"module.{name}" if rng.random() < 0.1 else name: value for name, value in tensors.items()}
    stream = io.BytesIO()
    torch.save({"model": renamed, "epoch": 3}, stream, _use_new_zipfile_serialization=rng.random() < 0.7)
    (folder / "my.pth").write_bytes(damage_bytes(rng, stream.getvalue()))
    return case_of(f"convert my.pth {rng.choice(('--inspect --json', '-o out/x.safetensors'))}", CODES)


WEIGHT_KINDS = (Kind(name="checkpoints", make=make_weights, share=1500, needs=("classifier",)),)
