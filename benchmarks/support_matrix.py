"""Which backbones and weights work with which command: python benchmarks/support_matrix.py [--check]

Every row runs the commands in small, on a CPU: real width and heads, one block, and small clips. Public
weights are random values with the names and shapes of their publisher. The result is
benchmarks/results/support_matrix.json. With --check nothing is written: the exit code is 1 if a cell differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
import transformers
from measuring import write_results
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

import everest
from everest.checkpoints.public_weights import PublicWeights, read_public_weights
from everest.config.model_settings import BACKBONES
from everest.converters.timm_images import convert_image_model
from everest.errors import UserError
from everest.methods.grid import TokenGrid
from everest.models.positions import position_table
from everest.video.writer import write_video
from everest_cli.main import app

COLUMNS = ("load", "select", "train", "export", "resume")
RESULTS = Path(__file__).with_name("results") / "support_matrix.json"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from foreign import RELEASED, saved, shapes  # noqa: E402

SQUARE = 16  # pixels of the square that moves
SMALL = [
    *("data.frames=4", "data.train=list.csv", "data.test=list.csv", "data.num_classes=2"),
    *("model.depth=1", "model.decoder_depth=1", "train.workers=0", "train.save_every=1"),
    *("pretrain.steps=2", "pretrain.batch_size=2", "pretrain.stride=1", "pretrain.warmup_steps=0"),
    *("finetune.steps=2", "finetune.batch_size=2", "finetune.stride=1", "finetune.warmup_steps=0"),
]


class Failed(Exception):
    """A command that ended with another code than 0: its message."""


def everest_command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exit_code:
        lines = result.stderr.strip().splitlines() or [repr(result.exception)]
        raise Failed(lines[-1].removeprefix("error: "))
    return result.stdout


def tried(probe: Callable[[], None]) -> bool | str:
    """True, or the reason why it does not work. A bug is no result, and is raised."""
    try:
        probe()
    except (Failed, UserError) as problem:
        return str(problem).splitlines()[0]
    return True


class Probes:
    """The probes of one backbone or of public weights, in a folder of its own.

    Args:
        settings: of the recipe.
        weights: makes the weights in a file of everest; None: `pretrain` trains them.
    """

    def __init__(
        self, folder: Path, settings: list[str], weights: Callable[[Path], Path] | None = None
    ) -> None:
        self.folder = folder
        self.weights = weights
        self.encoder = folder / "encoder"
        self.options = ["--recipe", "custom", "--data", folder, "--gpus", "cpu", "--quiet"]
        self.options += [word for setting in [*SMALL, *settings] for word in ("--set", setting)]
        render(folder)

    def probe(self) -> dict[str, Any]:
        made = tried(self.make)
        if made is not True:
            return dict.fromkeys(COLUMNS, str(made).replace(f"{self.folder}/", ""))
        results: dict[str, Any] = {"load": tried(self.load), "select": tried(self.select)}
        results["train"] = tried(self.finetune)
        if results["train"] is not True:
            results |= dict.fromkeys(COLUMNS[3:], "not trained")
        else:
            exports = {kind: tried(lambda kind=kind: self.export(kind)) for kind in ("hf", "onnx")}
            results["export"] = True if all(value is True for value in exports.values()) else exports
            results["resume"] = tried(self.resume)
        return json.loads(json.dumps(results).replace(f"{self.folder}/", ""))

    def make(self) -> None:
        if self.weights is None:
            everest_command("pretrain", *self.options, "--output", self.encoder)
        else:
            self.encoder = self.weights(self.folder)

    def finetune(self) -> None:
        init = ("--init", self.encoder, "--output", self.folder / "classifier")
        everest_command("finetune", *self.options, *init)

    def load(self) -> None:
        model = everest.load_model(self.encoder)
        found = everest.extract(model, [self.folder / "0.mp4"], clips=1, crops=1)
        assert torch.isfinite(found.features).all()

    def select(self) -> None:
        model = everest.load_model(self.encoder)
        clip = everest.normalize(everest.read_clip(self.folder / "0.mp4", like=model))[None]
        selection = everest.select_tokens(clip, model=model, keep=0.5)
        assert selection.visible.size(1) == model.encoder.grid.num_tokens // 2

    def export(self, kind: str) -> None:
        names = {"hf": "hf", "onnx": "model.onnx"}
        words = ("--to", kind, "--output", self.folder / names[kind])
        everest_command("export", self.folder / "classifier", *words)

    def resume(self) -> None:
        """Without its last state, the run makes the same weights again."""
        run = self.folder / "classifier"
        before = load_file(run / "model.safetensors")
        states = (run / "state").glob("step-*.safetensors")
        max(states, key=lambda path: int(path.stem.split("-")[1])).unlink()
        (run / "model.safetensors").unlink()
        self.finetune()
        after = load_file(run / "model.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)


def render(folder: Path) -> None:
    """Write four videos of two classes, and their list."""
    for number in range(4):
        frames = torch.zeros(8, 48, 64, 3, dtype=torch.uint8)
        for time in range(8):
            left = 4 + 4 * time * (number % 2)
            frames[time, SQUARE : 2 * SQUARE, left : left + SQUARE] = 220
        write_video(folder / f"{number}.mp4", frames, fps=8)
    (folder / "list.csv").write_text("".join(f"{number}.mp4 {number % 2}\n" for number in range(4)))


def published(weights: PublicWeights) -> Callable[[Path], Path]:
    """A function that converts random weights with the names and shapes of `weights`, one block deep."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        converted = folder / "converted.safetensors"
        if weights.layout == "timm":
            name = weights.name.removeprefix("timm:")
            config = timm.get_pretrained_cfg(name)
            assert config is not None
            image = timm.create_model(name, num_classes=0, depth=1)
            convert_image_model(image, mean=config.mean, std=config.std, source=weights.name).save(converted)
            return converted
        if weights.layout in RELEASED:
            tensors = {name: _values(name, shape) for name, shape in shapes(weights.layout, depth=1).items()}
            source = saved(folder / "released.pth", tensors)
        else:
            source = folder / "transformers"
            _transformers_model(weights).save_pretrained(source)
        partial = ["--partial"] if weights.gives == "encoder" and weights.layout in RELEASED else []
        everest_command("convert", source, "--output", converted, *partial)
        return converted

    return make


def _values(name: str, shape: tuple[int, ...]) -> Tensor:
    """Random values; the positions of MVD are computed ones, of clips of 16 frames and 224 pixels."""
    if name.startswith("pos_embed"):
        return position_table("separable", TokenGrid(t=8, h=14, w=14), shape[-1])[None]
    return 0.02 * torch.randn(shape)


def _transformers_model(weights: PublicWeights) -> Any:
    size = BACKBONES[weights.backbone]
    heads = next((int(s.partition("=")[2]) for s in weights.settings if "heads" in s), size.heads)
    shared = {"hidden_size": size.width, "num_hidden_layers": 1, "num_attention_heads": heads}
    if weights.layout == "VJEPA2Model":
        own = {"crop_size": weights.size, "frames_per_clip": weights.frames}
        own["mlp_ratio"] = size.mlp / size.width
        return transformers.VJEPA2Model(transformers.VJEPA2Config(**shared, **own))
    decoder = {
        "decoder_hidden_size": size.decoder_width,
        "decoder_num_attention_heads": size.decoder_heads,
        "decoder_intermediate_size": 4 * size.decoder_width,
        "decoder_num_hidden_layers": 1,
    }
    config = transformers.VideoMAEConfig(**shared, **decoder, intermediate_size=size.mlp, num_labels=400)
    return getattr(transformers, weights.layout)(config)


def rows(only: str | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The table and the name of each row, with its results. Weights of one method and layout are one row."""
    for name in BACKBONES:
        if only in (None, name):
            with TemporaryDirectory() as folder:
                settings = [f"model.backbone={name}", "model.tubelet=[2,8,8]", "data.size=32"]
                yield "backbones", name, Probes(Path(folder), settings).probe()
    for weights in different_weights():
        if only in (None, weights.name):
            patch = 14 if any("14,14" in setting for setting in weights.settings) else 16
            settings = [f"model.backbone={weights.backbone}", f"data.size={4 * patch}", *weights.settings]
            with TemporaryDirectory() as folder:
                yield "weights", weights.name, Probes(Path(folder), settings, published(weights)).probe()


def different_weights() -> list[PublicWeights]:
    """The first weights of each method and layout."""
    return list({(each.method, each.layout): each for each in reversed(read_public_weights())}.values())[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the results, write nothing")
    parser.add_argument("--only", help="one backbone")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"backbones": {}, "weights": {}}
    stale = []
    for table, name, result in rows(arguments.only):
        print(f"{name}: {result}", flush=True)
        if arguments.check:
            stale += [name] if known[table].get(name) != result else []
        else:  # after each row, so that a killed call has written those before
            known[table][name] = result
            write_results(RESULTS, known)
    if stale:
        sys.exit(f"stale: {', '.join(stale)}; run python benchmarks/support_matrix.py")


if __name__ == "__main__":
    main()
