"""Good input, from which the cases make damaged input: clips, lists, tiny trained models, shards."""

import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = """\
summary: the smallest model that trains
data: {root: clips, train: train.csv, val: train.csv, test: train.csv, num_classes: 2, frames: 4, size: 32}
model: {backbone: vit-tiny, tubelet: [2, 8, 8], width: 16, depth: 1, heads: 2, decoder_width: 16,
        decoder_heads: 2, decoder_depth: 1}
train: {workers: 0, micro_batch: 2, precision: fp32, save_every: 1, keep_states: 2}
pretrain: {stride: 1, epochs: 2, warmup_epochs: 1, batch_size: 2, base_lr: 0.1}
finetune: {stride: 1, epochs: 2, warmup_epochs: 1, batch_size: 2, base_lr: 0.1, drop_path: 0.1}
eval: {clips: 1, crops: 1}
"""
STOP_AFTER = 2  # of 4 steps
CONTAINERS = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "mpeg4"),
    "avi": ("avi", "mpeg4"),
    "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx"),
    "gif": ("gif", "gif"),
    "ts": ("mpegts", "mpeg2video"),
    "flv": ("flv", "flv1"),
}


@dataclass(frozen=True)
class Bases:
    """Folders and files below `root`, each made by the method `_build_NAME` when a kind needs it.

    `clips` has four videos of 12 frames and their list `train.csv`, `containers` the same clip in every
    container, `images` 6 images. `pretrained` and `classifier` are finished runs of `pretrain` and
    `finetune`, `stopped` is that of `pretrain`, stopped after `STOP_AFTER` steps.
    """

    root: Path

    def copy(self, name: str, folder: Path) -> Path:
        """Copy a base into the folder of a case."""
        source = self.root / name
        if source.is_dir():
            return Path(shutil.copytree(source, folder / name))
        return Path(shutil.copy(source, folder / name))

    def build(self, names: set[str]) -> None:
        """Make the bases of these names, and those that they are made from. Runs in a process of its own."""
        names = names | {"clips", "recipe"}
        if "classifier" in names:
            names.add("pretrained")
        first = ("clips", "recipe", "pretrained", "stopped", "classifier")
        for name in (*first, "shards", "containers", "images"):
            if name in names and not (self.root / name).exists():
                getattr(self, f"_build_{name}")()

    def _build_clips(self) -> None:
        (folder := self.root / "clips").mkdir(parents=True)
        for number in range(4):
            _encode(folder / f"clip{number}.mp4", "mp4", "libx264", shift=number + 1)
        rows = "".join(f"clip{number}.mp4 {number % 2}\n" for number in range(4))
        (folder / "train.csv").write_text(rows)

    def _build_recipe(self) -> None:
        (self.root / "recipe.yaml").write_text(RECIPE)

    def _build_pretrained(self) -> None:
        self._train("pretrain", "pretrained")

    def _build_classifier(self) -> None:
        self._train("finetune --init pretrained", "classifier")

    def _build_stopped(self) -> None:
        from everest.system.run_folder import RunFolder

        log = RunFolder.log

        def log_and_stop(self: RunFolder, row: dict[str, Any]) -> None:
            log(self, row)
            if row["step"] == STOP_AFTER:
                os.kill(os.getpid(), signal.SIGTERM)  # the run ends after this step, as from a terminal

        RunFolder.log = log_and_stop
        try:
            self._train("pretrain", "stopped", code=143)
        finally:
            RunFolder.log = log

    def _build_shards(self) -> None:
        self._call("prepare shard clips/train.csv -o shards --count 2 -q")

    def _build_containers(self) -> None:
        (folder := self.root / "containers").mkdir()
        for suffix, (container, codec) in CONTAINERS.items():
            _encode(folder / f"clip.{suffix}", container, codec, shift=2)

    def _build_images(self) -> None:
        from PIL import Image

        (folder := self.root / "images").mkdir()
        for number, frame in enumerate(_frames(shift=2)[:6]):
            Image.fromarray(frame).save(folder / f"{number:03d}.{'png' if number % 2 else 'jpg'}")

    def _train(self, command: str, name: str, *, code: int = 0) -> None:
        """Make a run, without the time in env.json, so that cases do not depend on it."""
        self._call(f"{command} -r recipe.yaml -o {name} --gpus cpu -q", code=code)
        path = self.root / name / "env.json"
        values = json.loads(path.read_text()) | {"time": "2026-01-01T00:00:00+0000"}
        path.write_text(json.dumps(values, indent=2))

    def _call(self, command: str, *, code: int = 0) -> None:
        from .worker import call

        ended, _, stderr = call(command.split(), self.root)
        assert ended == code, f"everest {command} ended with {ended}: {stderr}"


def _frames(*, shift: int):
    """(12, 24, 32, 3) uint8: a pattern that moves."""
    import numpy as np

    pattern = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    pattern = pattern.repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(pattern, number * shift, axis=1) for number in range(12)])


def _encode(path: Path, container: str, codec: str, *, shift: int) -> None:
    import av

    with av.open(str(path), "w", format=container, container_options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream(codec, rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 32, 24
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 4
        for frame in _frames(shift=shift):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
