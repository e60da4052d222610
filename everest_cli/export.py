"""`everest export`: weights for other programs."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from everest.errors import UserError
from everest.system.events import Emit, notice
from everest.system.files import check_new_file, check_new_folder, refuse_inputs, write_text
from everest.system.run_folder import WEIGHTS_FILE, Which
from everest.system.signals import exit_on_signals
from everest_cli import options as o
from everest_cli.options import argument, option, read_keep_ratios, refuse
from everest_cli.output import Display, print_result, say

if TYPE_CHECKING:
    from everest.checkpoints.load import LoadedModel
    from everest.models.base import ClipModel

CAMERA_PROGRAM: Final = "classify.py"  # classifies a camera's video with an exported file
NEXT_COMMANDS: Final = {
    "next": "next",
    "alarms": "count false alarms on hours of ordinary video",
    "camera": "read a camera or a file, with numpy, onnxruntime and av only",
    "int8": "a smaller file, faster on most CPUs",
}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    to: Literal["hf", "onnx"] = option("--to hf|onnx", "A transformers folder, or an ONNX file.", ...)
    out: Path = option("--output -o D", "The folder, or the .onnx file.", ...)
    keep: float | None = o.KEEP
    precision: Literal["fp32", "int8"] = option("--precision", "Precision of an ONNX network.", "fp32")
    calibrate: Path | None = option("--calibrate LIST", "List or folder of typical videos, for int8.")
    evaluation: Path | None = option("--evaluation F", "Output of everest eval --json, for the model card.")
    which: Which | None = o.WHICH
    overwrite: bool = o.OVERWRITE_FILES

    @property
    def card_file(self) -> Path:
        return self.out.with_name(f"{self.out.name}.CARD.md")

    def check(self) -> None:
        """Raise RecipeError for options that do not fit together, and for files that exist."""
        if self.keep is not None:
            read_keep_ratios(str(self.keep))
        to, out, is_int8 = self.to, self.out, self.precision == "int8"
        refuse(
            {
                "--precision int8 needs --to onnx and --calibrate LIST": is_int8
                and (self.calibrate is None or to != "onnx"),
                "--calibrate needs --precision int8": self.calibrate is not None and not is_int8,
                "--to hf: does not support --keep; use --to onnx": to == "hf" and self.keep not in (None, 1),
                f"--output {out}: end its name in .onnx": to == "onnx" and out.suffix != ".onnx",
            }
        )
        if to == "hf":
            check_new_folder(out, overwrite=self.overwrite)
        else:
            for path in (out, self.card_file):
                check_new_file(path, overwrite=self.overwrite)


def export(
    *, checkpoint: str = argument("C", o.CHECKPOINT_HELP), options: ExportOptions, as_json: bool = o.AS_JSON
) -> None:
    """Export a model and check its outputs against everest's; prints the path.

    Example: everest export runs/finetune --to onnx --output model.onnx
    """
    options.check()

    from everest.checkpoints.load import find_run_weights, find_weights, open_model
    from everest.checkpoints.transformers import write_folder
    from everest.evaluation.card import model_card, read_evaluation
    from everest_workflows.project.result import read_project_result
    from everest_workflows.project.summary import make_card_lines

    weights = find_weights(checkpoint, which=options.which)
    refuse_inputs(options.out, find_run_weights(weights))
    loaded = open_model(weights, kind="clips")
    evaluation = None if options.evaluation is None else read_evaluation(options.evaluation)
    result = read_project_result(loaded.file)
    tested = [] if result is None else make_card_lines(result)
    with exit_on_signals(), Display() as display:
        if options.to == "hf":
            card = partial(model_card, loaded, evaluation=evaluation, file=WEIGHTS_FILE, tested=tested)
            document = write_folder(options.out, loaded, card=card)
        else:
            time = None if result is None else result.clip_time
            limit = "" if time is None else f"; train --latency {time.limit_ms:g}"
            document = _export_onnx(checkpoint, loaded, options, evaluation, tested, limit, display.emit)
    if options.calibrate is None:  # otherwise a note compares the outputs
        on = "partly still clips of noise"
        say(f"outputs differ from everest's by at most {document['difference']:.1e}, on {on}")
    say(*(f"note: {note}" for note in document["notes"]))
    say(*(f"{title}: {document[key]}" for key, title in NEXT_COMMANDS.items() if key in document))
    document = {"checkpoint": str(loaded.file), "to": options.to, **document}
    print_result(document, options.out, as_json=as_json)


def _export_onnx(
    checkpoint: str,
    loaded: LoadedModel,
    options: ExportOptions,
    evaluation: dict[str, Any] | None,
    tested: list[str],
    limit: str,
    emit: Emit,
) -> dict[str, Any]:
    """Write an ONNX file and its card; returns the values of --json."""
    from everest.checkpoints.graph import TRAINING, make_graph
    from everest.checkpoints.graph_files import write_onnx
    from everest.checkpoints.load import find_recipe_beside
    from everest.checkpoints.quantization import read_int8_clips
    from everest.config.recipe_files import shipped_folder
    from everest.evaluation.card import model_card
    from everest_workflows.recordings.timelines import read_training

    out, card_file = options.out, options.card_file
    clips = None if options.calibrate is None else read_int8_clips(loaded, options.calibrate, emit)
    graph = make_graph(loaded, keep=options.keep, precision=options.precision)
    recipe = find_recipe_beside(loaded.file) if loaded.weights.kind == "classifier" else None
    training = read_training(loaded.model)
    if any(value is not None for value in training.values()):
        graph.metadata[TRAINING] = json.dumps(training)
    metadata = write_onnx(out, graph, clips=clips, emit=emit)
    speed = f"network, a clip on one CPU thread: {metadata['network_ms']:.3g} ms with ONNX Runtime"
    speed += f" (without reading and decoding{limit})"
    emit(notice(speed))
    document: dict[str, Any] = {"written": [str(out), str(card_file)], **metadata}
    if tested:
        tested = [*tested, *(f"- {note}" for note in metadata["notes"])]
    of_file = replace(loaded, spec=graph.spec)
    card = model_card(of_file, evaluation=evaluation, file=out.name, tested=tested, speed=[f"- {speed}"])
    write_text(card_file, card)
    if recipe is not None:
        document |= _list_next_commands(checkpoint, loaded.model, options, recipe, training["group"])
        program = out.with_name(CAMERA_PROGRAM)
        if options.overwrite or not program.exists():  # it may be a file of the user
            text = (shipped_folder("examples") / CAMERA_PROGRAM).read_text(encoding="utf-8")
            write_text(program, text)
            document["written"].append(str(program))
    return document


def _list_next_commands(
    checkpoint: str, model: ClipModel, options: ExportOptions, recipe: Path, group: str | None
) -> dict[str, str]:
    """Return the commands of NEXT_COMMANDS; the test needs new videos if the run has no test list."""
    from everest.config.recipe import load_recipe
    from everest.lists.groups import COLUMN_PREFIX
    from everest.lists.sources import read_source
    from everest_workflows.recordings.groups import SUBJECT

    data = load_recipe(recipe).data
    in_list = group is None or group == SUBJECT or group.startswith(COLUMN_PREFIX)
    if group is None:  # groups of a list, if there are any
        with suppress(UserError):  # such as videos that have moved
            samples = read_source(data, "train", labeled=False, skip_missing=True).samples
            in_list = any(sample.group is not None for sample in samples)
    file, program = str(options.out), str(options.out.with_name(CAMERA_PROGRAM))
    command = ["everest", "eval", "--checkpoint", file, "--recipe", str(recipe)]
    command += ["--set", "eval.clips=1", "--set", "eval.crops=1"]
    if data.test is None:  # new videos, in class folders or a list, which may have a column of groups
        source = "." if data.heads is None and data.task == "single-label" and not in_list else "test.csv"
        command += ["--data", "NEW_CLIPS", "--set", f"data.test={source}"]
        command += ["--group", group] if group and not in_list else []
    commands = {"next": shlex.join(command)}
    if alarm := model.spec.heads[0].alarm:
        watch = ["everest", "timeline", "FOOTAGE", "--checkpoint", file, "--normal", alarm.normal]
        commands["alarms"] = shlex.join(watch)
    commands["camera"] = shlex.join(["python", program, file, "0"])
    if options.precision == "fp32":
        command = ["everest", "export", checkpoint, "--to", "onnx", "--precision", "int8", "--calibrate"]
        output = str(options.out.with_name(f"{options.out.stem}-int8.onnx"))
        command += [str(Path(data.root, data.train or "")), "--output", output]
        commands["int8"] = shlex.join(command)
    return commands
