"""Does a checkout behave like an earlier one? Recipes, errors, training steps, JSON, weights.

    git worktree add ../before TAG && make -C ../before .venv/.ready
    python benchmarks/same_as_before.py ../before . [--only steps] [--tolerance 1e-5]

Each checkout runs the same commands on the same inputs, in its own environment. Every difference is printed;
the exit code is 1 if there is one. Only commands and files are compared: any code behind them may change.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

PARTS: Final = ("recipes", "errors", "steps", "json", "weights")
VOLATILE: Final = re.compile(  # keys whose values differ between two equal runs
    r"second|time|memory|bytes|version|commit|machine|clips_per|data_wait|hours|minutes|started|device|cpu|latency"
    r"|path|file|size_mb|joules|created|fingerprint|host|modified"
)
RECIPE: Final = """
summary: small enough for a comparison
data: {root: ROOT, train: train.csv, val: train.csv, test: train.csv, frames: 8, size: 32}
model: {backbone: vit-tiny, tubelet: [2, 8, 8], width: 32, depth: 2, heads: 2, decoder_width: 16,
        decoder_heads: 2, decoder_depth: 1}
train: {workers: 0, precision: fp32, save_every: 5}
pretrain: {stride: 2, steps: 5, warmup_steps: 1, batch_size: 4, base_lr: 0.05}
finetune: {stride: 2, steps: 5, warmup_steps: 1, batch_size: 4, base_lr: 0.05}
eval: {clips: 2, crops: 1}
"""
TOKENIZER: Final = """
tokenizer: {size: tiny, channels: 8, multipliers: [1, 1], time_down: [false], frames: 8, keep: 0.25, steps: 5,
            batch_size: 4}
"""
SELECTION: Final = "pretrain.selection={{strategy: {}}}".format
PRETRAINING: Final[dict[str, tuple[str, ...]]] = {
    "default": (),
    **{name: (SELECTION(name),) for name in ("random", "tube", "running-cell", "frame-difference", "frame")},
    "drawn": (SELECTION("drawn, keep_ratio: 0.5, visible_ratio: 0.25, uniform: 0.5"),),
    "distance l1": ("pretrain.selection.distance=l1",),
    "distance neg-cosine": ("pretrain.selection.distance=neg-cosine",),
    "distance neg-cka": ("pretrain.selection.distance=neg-cka",),
    "ascending": ("pretrain.selection.order=ascending",),
    "zero first slice": ("pretrain.selection.first_slice=zero",),
    "aligned": ("pretrain.selection.align=shift", "pretrain.selection.cuts=detect"),
    "slice cap": ("pretrain.selection.slice_cap=0.3",),
    "frame selection": ("pretrain.frame_selection={alpha: 1.5, recompute: true}",),
    "plain pixels": ("pretrain.target.normalize=false",),
    "half of the frames": ("pretrain.target.frames=half",),
    "several views": ("pretrain.views_per_decode=2",),
    "contrast": ("pretrain.objective=views",),
    "sigreg": ("pretrain.objective=views", "pretrain.views.loss=sigreg"),
    "contrast and camera": ("pretrain.objective=views", "pretrain.camera_motion=1"),
    "pixels and camera": ("pretrain.camera_motion=1",),
    "differences": ("model.input=differences", "model.positions=separable"),
    "gray": ("data.channels=1",),
    "rotary": ("model.positions=rotary",),
    "accumulation": ("train.micro_batch=2", "train.ema=0.9", "train.clip_grad=0.1"),
    "segment": ("pretrain.sampling=segment",),
    "spread": ("pretrain.sampling=spread",),
}
FINETUNING: Final[dict[str, tuple[str, ...]]] = {
    "default": (),
    "all tokens": ("finetune.selection={strategy: all}",),
    "tube dropout": ("finetune.selection={strategy: tube-dropout}",),
    "mixing": ("finetune.mixup=0.8", "finetune.cutmix=1.0"),
    "no augmentation": ("finetune.rand_augment=null", "finetune.erasing=0", "finetune.drop_path=0"),
    "adapters": ("finetune.lora={rank: 2, alpha: 4}",),
    "frozen embedding": ("finetune.freeze=embedding",),
    "frozen encoder": ("finetune.freeze=encoder",),
    "class attention": ("model.pooling=class-attention",),
    "balanced sampler": ("finetune.sampler=balanced",),
    "balanced weights": ("finetune.class_weights=balanced",),
    "layer decay": ("finetune.layer_decay=0.5", "finetune.best=loss"),
    "bf16": ("train.precision=bf16",),
    "checkpointing": ("train.checkpointing=true",),
}
BAD_VALUES: Final = ("nonsense", "-7")


# --- in the process of a checkout ---


class Commands:
    """Runs everest commands in forks of this process, which has imported everything once."""

    def __init__(self, folder: Path) -> None:
        import torch

        import everest
        from everest_cli.main import main

        torch.set_num_threads(1)
        assert everest.load_model  # imported before the forks
        self._main, self._folder = main, folder
        self._number = 0

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self._number += 1
        files = [self._folder / f"{self._number}.{name}" for name in ("out", "err")]
        pid = os.fork()
        if not pid:
            for number, file in enumerate(files, start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.argv = ["everest", *map(str, words)]
            code = 0
            try:
                self._main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                code = 99
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), files[0].read_text(), files[1].read_text()


def recipes(run: Commands, folder: Path) -> Iterator[tuple[str, Any]]:
    """Every shipped recipe, resolved."""
    import yaml

    names = [row["name"] for row in json.loads(run("recipes", "list", "--json")[1])]
    for name in names:
        code, out, _ = run("recipes", "show", name, "--resolved")
        yield name, (code, yaml.safe_load(out))


def errors(run: Commands, folder: Path) -> Iterator[tuple[str, Any]]:
    """The exit code, and whether the message names the key or file, of invalid recipes and inputs."""
    import yaml

    recipe = folder / "recipe.yaml"
    resolved = yaml.safe_load(run("recipes", "show", recipe, "--resolved")[1])
    for key in leaves(resolved):
        stage = "finetune" if key.startswith("finetune") else "pretrain"
        names = [f"{key}={value}" for value in BAD_VALUES] + [f"{key}x=1"]
        for setting in names:
            code, out, err = run(stage, "--recipe", recipe, "--set", setting, "--print-config")
            yield f"--set {setting}", (code, key in err if code else "accepted", bool(out))
    bad = folder / "bad"
    files = {file.name: file for file in sorted(bad.iterdir())}
    for name, file in files.items():
        cases = (
            ("prepare", "check", file),
            ("finetune", "--recipe", recipe, "--init", "none", "--set", f"data.train={file}", "--dry-run"),
            ("predict", folder / "videos" / "0.mp4", "--checkpoint", file),
            ("predict", file, "--checkpoint", folder / "none"),
            ("pretrain", "--recipe", file, "--dry-run"),
        )
        for number, words in enumerate(cases):
            code, _, err = run(*words)
            yield f"{words[0]} {number} {name}", (code, name in err)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values that are no mappings."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def steps(run: Commands, folder: Path) -> Iterator[tuple[str, Any]]:
    """Losses and gradient norms of five steps of each kind of run; weights are compared afterwards."""
    tokenizer = folder / "runs" / "tokenizer"
    yield "train-tokenizer", trained(run, "train-tokenizer", tokenizer, folder)
    teacher = folder / "runs" / "pretrain default"
    others = {
        "codes codes": ("pretrain.target={kind: tokens, space: codes}",),
        "codes values": ("pretrain.target={kind: tokens, space: values}",),
        "features": (f"pretrain.target={{kind: features, teacher: {teacher}}}",),
    }
    for name, settings in {**PRETRAINING, **others}.items():
        extra = (f"tokenizer.checkpoint={tokenizer}",) if name.startswith("codes") else ()
        run_folder = folder / "runs" / f"pretrain {name}"
        yield f"pretrain {name}", trained(run, "pretrain", run_folder, folder, *settings, *extra)
    for name, settings in FINETUNING.items():
        init = "none" if name == "class attention" else teacher
        run_folder = folder / "runs" / f"finetune {name}"
        yield f"finetune {name}", trained(run, "finetune", run_folder, folder, *settings, init=init)


def trained(
    run: Commands, stage: str, output: Path, folder: Path, *settings: str, init: object = None
) -> Any:
    """The exit code and the rows of a run, or its message."""
    tokenizer = stage == "train-tokenizer" or any(each.startswith("tokenizer") for each in settings)
    recipe = folder / ("tokenizer.yaml" if tokenizer else "recipe.yaml")
    words = [stage, "--recipe", recipe, "-o", output, "--gpus", "cpu", "-q"]
    words += [word for setting in settings for word in ("--set", setting)]
    words += ["--init", init] if stage == "finetune" else []
    code, _, err = run(*words)
    if code:
        return code, err.replace(str(folder), "FOLDER")
    rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return code, [plain(row, folder) for row in rows]


def as_json(run: Commands, folder: Path) -> Iterator[tuple[str, Any]]:
    """Each command with --json."""
    video, lists, recipe = folder / "videos" / "0.mp4", folder / "train.csv", folder / "recipe.yaml"
    classifier, encoder = folder / "runs" / "finetune default", folder / "runs" / "pretrain default"
    commands: dict[str, tuple[object, ...]] = {
        "predict": ("predict", video, "--checkpoint", classifier),
        "predict list": ("predict", lists, "--checkpoint", classifier, "--top", 1),
        "timeline": ("timeline", video, "--checkpoint", classifier, "--window", "0.5"),
        "eval": ("eval", "--checkpoint", classifier),
        "probe": ("probe", "--checkpoint", encoder),
        "profile": ("profile", "--recipe", recipe),
        "profile backbone": ("profile", "--backbone", "vit-l"),
        "suggest": ("recipes", "suggest", lists, "--output", folder / "suggested.yaml"),
        "recipes": ("recipes", "list"),
        "weights": ("weights", "list"),
        "check": ("prepare", "check", lists),
        "stats": ("prepare", "stats", lists),
        "split": ("prepare", "split", lists, "--output", folder / "split"),
        "windows": ("prepare", "windows", video, "--seconds", "0.5", "--output", folder / "windows.csv"),
        "select-frames": ("select-frames", video, "--frames", 4),
        "visualize-mask": ("visualize-mask", video, "--output", folder / "mask.png"),
        "runs": ("runs", folder / "runs"),
    }
    for name, words in commands.items():
        code, out, err = run(*words, "--json")
        found = json.loads(out) if out.strip().startswith(("{", "[")) else out
        yield name, (code, plain(found, folder), "" if not code else err.replace(str(folder), "FOLDER"))


def weights(run: Commands, folder: Path) -> Iterator[tuple[str, Any]]:
    """What a classifier of the other checkout predicts."""
    for place in ("other", "own"):
        model = (folder / place if place == "other" else folder) / "runs" / "finetune default"
        code, out, _ = run("predict", folder / "videos" / "0.mp4", "--checkpoint", model, "--json")
        yield "predictions", (code, plain(json.loads(out), folder) if not code else None)


def plain(value: Any, folder: Path) -> Any:
    """A JSON value without what differs between equal runs."""
    match value:
        case dict():
            named = {key.replace(str(folder), "FOLDER"): each for key, each in value.items()}
            return {key: plain(each, folder) for key, each in named.items() if not VOLATILE.search(key)}
        case list():
            return [plain(each, folder) for each in value]
        case str():
            return value.replace(str(folder), "FOLDER")
    return value


COLLECTORS: Final = dict(zip(PARTS, (recipes, errors, steps, as_json, weights), strict=True))


def collect(folder: Path, parts: list[str]) -> None:
    """Write what this checkout answers, one JSON file for each part."""
    scratch = folder / "output"
    scratch.mkdir(exist_ok=True)
    run = Commands(scratch)
    for part in parts:
        found: dict[str, Any] = {}
        for name, value in COLLECTORS[part](run, folder):
            if part == "weights":
                found.setdefault(name, []).append(value)
            else:
                found[name] = value
        (folder / f"{part}.json").write_text(json.dumps(found))


# --- in the calling process ---


def write_inputs(folder: Path) -> None:
    """Eight videos of two motions, a list, a recipe, and files that are wrong."""
    import av
    import numpy as np

    (folder / "videos").mkdir(parents=True)
    (folder / "runs").mkdir()
    lines = ["path,label"]
    for number in range(8):
        path = folder / "videos" / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.thread_count = 1
            rng = np.random.default_rng(number)
            background = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
            for step in range(40):
                picture = background.copy()
                place = (step + 3 * number) % 40
                y, x = (place, 20) if number % 2 else (20, place)
                picture[y : y + 8, x : x + 8] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        lines.append(f"videos/{number}.mp4,{('right', 'down')[number % 2]}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    text = RECIPE.replace("ROOT", str(folder))
    (folder / "recipe.yaml").write_text(text)
    (folder / "tokenizer.yaml").write_text(text + TOKENIZER)
    bad = folder / "bad"
    bad.mkdir()
    video = (folder / "videos" / "0.mp4").read_bytes()
    wrong = {
        "empty.csv": b"",
        "header.csv": b"path,label\n",
        "missing.csv": b"path,label\nnowhere.mp4,a\n",
        "semicolon.csv": b"path;label\nvideos/0.mp4;a\n",
        "one_class.csv": f"path,label\n{folder}/videos/0.mp4,a\n".encode(),
        "binary.csv": bytes(range(256)),
        "cut.mp4": video[: len(video) // 2],
        "text.mp4": b"this is no video",
        "text.safetensors": b"these are no weights",
        "list.yaml": b"- 1\n- 2\n",
        "broken.yaml": b"data: {\n",
        "unknown.yaml": b"summary: x\ndatta: {}\n",
        "absent.csv.d": b"",
    }
    for name, content in wrong.items():
        (bad / name).write_bytes(content)


def run_checkout(checkout: Path, folder: Path, parts: list[str]) -> None:
    """Collect the parts of a checkout in its own environment."""
    own = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    command = [str(checkout / ".venv" / "bin" / "python"), __file__, "--collect", str(folder)]
    command += [word for part in parts for word in ("--only", part)]
    subprocess.run(command, env={**os.environ, **own}, check=True, cwd=folder)


def without(tree: dict[str, Any], keys: list[str]) -> None:
    """Remove dotted keys from a recipe."""
    for key in keys:
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.get(section) or {}
        inner.pop(last, None)


def forget(folder: Path, keys: list[str]) -> None:
    """Remove keys that the later checkout does not have from what the earlier one has written."""
    import yaml

    for path in (folder / "runs").glob("*/recipe.yaml"):
        recipe = yaml.safe_load(path.read_text())
        without(recipe, keys)
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    resolved = folder / "recipes.json"
    if resolved.exists():
        found = json.loads(resolved.read_text())
        for _, recipe in found.values():
            without(recipe, keys)
        resolved.write_text(json.dumps(found))


def differences(before: Any, after: Any, *, tolerance: float, place: str = "") -> Iterator[str]:
    """The places where two JSON values differ by more than a relative tolerance."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            if key not in before or key not in after:
                yield f"{place}.{key}: only {'after' if key in after else 'before'}"
            else:
                yield from differences(before[key], after[key], tolerance=tolerance, place=f"{place}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, tolerance=tolerance, place=f"{place}[{number}]")
    elif isinstance(before, float) and isinstance(after, float | int):
        if abs(before - after) > tolerance * max(abs(before), abs(after)):
            yield f"{place}: {before!r}, then {after!r}"
    elif before != after:
        yield f"{place}: {shortened(before)}, then {shortened(after)}"


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}…"


def weight_differences(before: Path, after: Path, *, tolerance: float) -> Iterator[str]:
    """The tensors of the runs of both checkouts that differ."""
    from safetensors.torch import load_file

    for file in sorted((before / "runs").glob("*/model.safetensors")):
        run, other = file.parent.name, after / "runs" / file.parent.name / file.name
        if not other.exists():
            yield f"{run}: no weights afterwards"
            continue
        first, second = load_file(file), load_file(other)
        if first.keys() != second.keys():
            yield f"{run}: tensors {sorted(first.keys() ^ second.keys())[:4]}"
        for name in first.keys() & second.keys():
            if not first[name].numel():
                continue
            largest = (first[name].double() - second[name].double()).abs().max().item()
            if largest > tolerance * max(1.0, first[name].abs().max().item()):
                yield f"{run}: {name} differs by {largest:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="*", help="the earlier one, then the later one")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, of numbers and weights")
    parser.add_argument("--removed", action="append", default=[], help="a key that only the earlier one has")
    parser.add_argument("--collect", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.only or list(PARTS)
    if options.collect:
        return collect(options.collect, parts)
    found: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / place for place in ("before", "after")]
        for folder in folders:
            write_inputs(folder)
        for folder, other in (folders, folders[::-1]):
            (folder / "other").symlink_to(other)
        first = [part for part in parts if part != "weights"]
        for chosen in (first, ["weights"] if "weights" in parts else []):
            for checkout, folder in zip(options.checkouts, folders, strict=True):
                if chosen:
                    run_checkout(checkout.absolute(), folder, chosen)
            forget(folders[0], options.removed)
        for part in parts:
            before, after = (json.loads((folder / f"{part}.json").read_text()) for folder in folders)
            of_part = list(differences(before, after, tolerance=options.tolerance, place=part))
            if part == "steps":
                of_part += weight_differences(*folders, tolerance=options.tolerance)
            if part == "weights":
                of_part += differences(
                    before["predictions"][0], after["predictions"][1], tolerance=0, place="read"
                )
            failed = sum(isinstance(v, list) and isinstance(v[0], int) and v[0] != 0 for v in before.values())
            counts = f"{len(before)} compared ({failed} end with an error), {len(of_part)} differ"
            print(f"{part}: {counts}", flush=True)
            found += of_part
    print(*found, sep="\n")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
