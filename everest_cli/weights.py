"""`everest weights` and `convert`: weights of other programs; `everest export`: weights for them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal

import typer

from everest.errors import CheckpointError, RecipeError, UserError, first_names
from everest.system.events import Report, notice
from everest.system.files import check_new_file, check_new_folder, refuse_inputs, write_errors, write_text
from everest.system.run_folder import WEIGHTS_FILE, Which
from everest_cli import options as o
from everest_cli.options import argument, option, read_numbers, read_shares, read_size, refuse
from everest_cli.output import Display, print_json, print_result, print_table, say

if TYPE_CHECKING:
    from everest.checkpoints.load import LoadedModel
    from everest.checkpoints.public_weights import PublicWeights
    from everest.converters.recognition import Hints

LIST_NOTES = (
    "Tested with random weights of the same names and shapes, three small image encoders with real ones. "
    "Further image models of timm: `--init timm:NAME`; docs/starting.md lists the families that load."
)
CAMERA_PROGRAM: Final = "classify.py"
NEXT_COMMANDS: Final = {
    "next": "next",
    "camera": "read a camera or a file, with numpy, onnxruntime and av only",
    "int8": "a smaller file, faster on most CPUs",
}
MOST_NAMES: Final = 20  # of classes that a report lists
FATES: Final = {
    "missing": "not in the file, starting fresh",
    "unexpected": "left out, not part of the model",
    "without_effect": "left out, without effect",
}

app = typer.Typer(help="Public weights: list, show.", no_args_is_help=True)


@app.command("list", epilog="Example: everest weights list")
def list_weights(as_json: bool = o.AS_JSON) -> None:
    """List the public weights that everest reads: method, backbone, data, license, use."""
    from rich.table import Column

    from everest.checkpoints.public_weights import read_public_weights

    table = read_public_weights()
    if as_json:
        print_json([_make_document(weights) for weights in table])
        return
    first = [(row.first_for, row.name, row.license) for row in table if row.first_for is not None]
    print_table(("first to try for", Column("weights", no_wrap=True), "license"), first, box=None)
    typer.echo()
    columns = (Column("weights", no_wrap=True), "method, backbone, data; license; gives")
    text = "{0.method}, {0.backbone}, {0.data}; {0.license}; {0.gives}"
    print_table(columns, [(row.name, text.format(row)) for row in table], box=None)
    say(LIST_NOTES)


def _make_document(weights: PublicWeights) -> dict[str, Any]:
    return {**asdict(weights), "commands": weights.commands, "downloaded": False}


@app.command(epilog="Example: everest weights show videomae-base")
def show(
    name: str = argument("NAME", "A name from `everest weights list`."), as_json: bool = o.AS_JSON
) -> None:
    """Print all that is known about public weights, and the commands to begin with."""
    from everest.checkpoints.public_weights import USE_BY_KIND, find_public_weights

    weights = find_public_weights(name)
    if as_json:
        print_json(_make_document(weights))
        return
    imitated = f"random weights of the names and shapes of {weights.layout}; never downloaded"
    rows = {
        "weights": weights.name,
        "from": weights.page or "downloaded by its name",
        "method": f"{weights.method}, {weights.backbone}, trained on {weights.data}",
        "license": f"{weights.license} (as its publisher states it; the one shown on download counts)",
        "input": f"{weights.frames} x {weights.size} x {weights.size}",
        "gives": USE_BY_KIND[weights.gives],
        "first for": weights.first_for,
        "tested": weights.tested or imitated,
    }
    for key, value in ((key, value) for key, value in rows.items() if value is not None):
        typer.echo(f"{key + ':':<10} {value}")
    typer.echo("\n  ".join(["commands:", *weights.commands]))


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """The options of `everest convert`."""

    out: Path | None = option("--output -o F", "The .safetensors file to write.")
    inspect: bool = option("--inspect", "Only identify the checkpoint.", False)
    partial: bool = option("--partial", "Convert what fits; initialize the rest.", False)
    family: str | None = option(
        "--family NAME",
        "For checkpoints with equal parameter names: videomae, videomae-v2, everest, mme, mvd.",
    )
    frames: int | None = option("--frames N", "Frames of a clip [16].", min=1)
    size: str | None = option("--size N|HxW", "Side, or height x width of a frame [224].")
    heads: str | None = option("--heads N[,M]", "Attention heads of an unusual width, and of its decoder.")
    classes: Path | None = option("--classes FILE", "Class names of a classifier, one per line.")
    overwrite: bool = o.OVERWRITE_FILES

    @property
    def hints(self) -> Hints:
        """What the user knows about a checkpoint of another program."""
        from everest.converters.recognition import Hints

        counts: list[int] = []
        if self.heads is not None:
            fix = "N, or N,M with the heads of the decoder, such as 12,6"
            counts = read_numbers("--heads", self.heads, r"[1-9]\d{0,4}(,[1-9]\d{0,4})?", fix=fix)
        return Hints(
            family=self.family.replace("_", "-") if self.family else None,
            frames=self.frames,
            size=None if self.size is None else read_size(self.size),
            **dict(zip(("heads", "decoder_heads"), counts, strict=False)),
        )


def convert(
    *,
    checkpoint: str = argument("IN", "A file, a transformers folder, hf:OWNER/NAME or timm:NAME[=FILE]."),
    options: ConvertOptions,
    as_json: bool = o.AS_JSON,
) -> None:
    """Convert a checkpoint of another program to everest's format; prints the path written.

    Reads EVEREST, VideoMAE (V2), ST-MAE, MME, MVD, transformers (VideoMAE and V-JEPA 2). Pickles are read as
    data: none can run code.

    Example: everest convert checkpoint-799.pth --output videomae.safetensors
    """
    out = None if options.inspect else options.out
    if not options.inspect:
        if out is None or out.suffix != ".safetensors":
            raise RecipeError("--output: name a .safetensors file, or use --inspect")
        check_new_file(out, overwrite=options.overwrite)

    from everest.checkpoints.describe import describe_weights
    from everest.checkpoints.load import find_run_weights, is_timm_name, open_model, open_weights
    from everest.converters.convert import convert, describe_checkpoint, identify
    from everest.converters.files import find_everest_file, locate_checkpoint, read_foreign
    from everest.lists.labels import read_class_names

    path = locate_checkpoint(checkpoint, notify=say)
    if out is not None:
        files = path.iterdir() if path.is_dir() else ()  # a checkpoint of transformers may have several
        refuse_inputs(out, [*find_run_weights(path), *files, options.classes])
    is_timm = is_timm_name(checkpoint)
    hints_given = (options.family, options.frames, options.size, options.heads, options.classes)
    if is_timm and (options.partial or any(value is not None for value in hints_given)):
        raise RecipeError(f"{checkpoint}: converted as it is; only --output, --inspect and --json apply")
    everest_file = None if is_timm else find_everest_file(path)
    if everest_file is not None and out is not None:
        raise CheckpointError(f"{path}: written by everest; use it without conversion")
    weights, hints = None, options.hints
    if is_timm:
        weights = open_weights(path)
        document = describe_weights(path, weights)
    elif everest_file is not None:
        document = describe_weights(everest_file, open_model(everest_file).weights)
    elif out is None:
        document = describe_checkpoint(identify(read_foreign(path), hints))
    else:
        names = None if options.classes is None else read_class_names(options.classes)
        conversion = convert(read_foreign(path), hints, partial=options.partial, classes=names)
        weights = conversion.weights
        document = {**describe_checkpoint(conversion.identity), "written": str(out)}
    lines = list(_list_lines(document))
    if out is None or weights is None:
        print_result(document, "\n".join(lines), as_json=as_json)
        return
    weights.save(out)
    say(*lines)
    print_result({**document, "written": str(out)}, out, as_json=as_json)


def _list_lines(document: dict[str, Any]) -> Iterator[str]:
    """Yield a line per known property; long lists of names by group."""
    from everest.converters.convert import group_names

    for name, value in document.items():
        title = name.replace("_", " ")
        if name == "licence":
            yield f"license: {value or 'not stated; see its source'}"
        elif value is None or value == []:
            continue
        elif name in FATES:
            yield f"{FATES[name]}: {len(value)} ({', '.join(group_names(value))})"
        elif name == "classes":
            yield f"classes: {first_names(value, MOST_NAMES)}"
        elif name == "origin":
            files = []
            while value:  # the file, what it started from, and so on
                license_name = f" (license {value['licence']})" if value.get("licence") else ""
                files.append(f"{value.get('file') or value.get('family', 'unknown')}{license_name}")
                value = value.get("origin")
            yield f"origin: {' from '.join(files)}"
        elif isinstance(value, dict):
            yield f"{title}: {', '.join(f'{key} {part}' for key, part in value.items())}"
        elif isinstance(value, list):
            yield f"{title}: {('; ' if name == 'notes' else ' x ').join(map(str, value))}"
        else:
            yield f"{title}: {value}"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `everest export`."""

    to: Literal["hf", "onnx"] = option("--to hf|onnx", "A transformers folder, or an ONNX file.", ...)
    out: Path = option("--output -o D", "The folder, or the .onnx file.", ...)
    keep: float | None = o.KEEP
    precision: Literal["fp32", "int8"] = option("--precision", "Precision of an ONNX network.", "fp32")
    calibrate: Path | None = option("--calibrate LIST", "List or folder of typical videos, for int8.")
    evaluation: Path | None = option("--evaluation F", "Output of everest eval --json, for the model card.")
    which: Which | None = o.WHICH
    quiet: bool = o.QUIET
    overwrite: bool = o.OVERWRITE_FILES

    @property
    def card_file(self) -> Path:
        """The model card of an ONNX file."""
        return self.out.with_name(f"{self.out.name}.CARD.md")

    def check(self) -> None:
        """Raise RecipeError for options that do not fit together, and for files that exist."""
        if self.keep is not None:
            read_shares(str(self.keep))
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
    from everest.project.exported import list_precisions, make_card_lines, read_project_result

    weights = find_weights(checkpoint, which=options.which)
    refuse_inputs(options.out, find_run_weights(weights))
    opened = open_model(weights, kind="clips")
    evaluation = None if options.evaluation is None else read_evaluation(options.evaluation)
    result = read_project_result(opened.file)
    tested = [] if result is None else make_card_lines(result)
    if options.to == "hf":
        card = model_card(opened, evaluation=evaluation, file=WEIGHTS_FILE, tested=tested)
        document = write_folder(options.out, opened, card=card)
    else:
        with Display(quiet=options.quiet) as display:
            time = None if result is None else result.clip_time
            limit = "" if time is None else f"; train --latency {time.limit_ms:g}"
            document = _export_onnx(checkpoint, opened, options, evaluation, tested, limit, display.report)
    if options.calibrate is None:  # else a note compares them
        on = "partly still clips of noise"
        say(f"outputs differ from everest's by at most {document['difference']:.1e}, on {on}")
    say(*(f"note: {note}" for note in document["notes"]))
    if "precisions" in document:
        say(*list_precisions(document["precisions"]))
    say(*(f"{title}: {document[key]}" for key, title in NEXT_COMMANDS.items() if key in document))
    document = {"checkpoint": str(opened.file), "to": options.to, **document}
    print_result(document, options.out, as_json=as_json)


def _export_onnx(
    checkpoint: str,
    opened: LoadedModel,
    options: ExportOptions,
    evaluation: dict[str, Any] | None,
    tested: list[str],
    limit: str,
    report: Report,
) -> dict[str, Any]:
    """Write an ONNX file, measure its accuracy, and write its card; returns the values of --json."""
    from everest.checkpoints.graph import make_graph
    from everest.checkpoints.graph_files import write_onnx
    from everest.checkpoints.load import find_recipe_beside
    from everest.checkpoints.quantization import read_int8_clips
    from everest.evaluation.card import model_card
    from everest.project.exported import compare_precisions, measure_exported_accuracy

    out, card_file = options.out, options.card_file
    clips = None if options.calibrate is None else read_int8_clips(opened, options.calibrate, report)
    exported = make_graph(opened, keep=options.keep, precision=options.precision)
    recipe, accuracy = find_recipe_beside(opened.file), None
    is_classifier = recipe is not None and opened.weights.kind == "classifier"
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_errors(out), TemporaryDirectory(dir=out.parent, prefix=".untested-") as folder:
        file = Path(folder, out.name)
        metadata = write_onnx(file, exported, clips=clips, report=report)
        speed = f"network, a clip on one CPU thread: {metadata['network_ms']:.3g} ms with ONNX Runtime"
        speed += f" (without reading and decoding{limit})"
        report(notice(speed))
        if is_classifier:
            try:
                accuracy = measure_exported_accuracy(
                    file,
                    opened.file,
                    report,
                    precision=options.precision,
                    keep=options.keep,
                    calibrated=[] if clips is None else clips.samples,
                )
            except UserError as error:  # such as videos that have moved; the file is written
                report(notice(f"accuracy not measured: {error}"))
        file.replace(out)
    document: dict[str, Any] = {"written": [str(out), str(card_file)], **metadata}
    lines = list(metadata["notes"])
    if accuracy is not None:
        report(notice(str(accuracy)))
        document["accuracy"] = vars(accuracy)
        lines.insert(0, str(accuracy))
    if clips is not None:
        document["precisions"] = compare_precisions(metadata, accuracy)
        lines.insert(0, document["precisions"]["advice"])
    if tested:
        tested = [*tested, *(f"- {line}" for line in lines)]
    of_file = replace(opened, spec=exported.spec)
    card = model_card(of_file, evaluation=evaluation, file=out.name, tested=tested, speed=[f"- {speed}"])
    write_text(card_file, card)
    if recipe is not None and is_classifier:
        document |= _list_next_commands(checkpoint, options, recipe)
        program = out.with_name(CAMERA_PROGRAM)
        if options.overwrite or not program.exists():  # it may be the user's own
            write_text(program, _find_camera_program().read_text(encoding="utf-8"))
            document["written"].append(str(program))
    return document


def _find_camera_program() -> Traversable:
    """The program that classifies a camera by an exported file."""
    try:
        return resources.files("everest.examples") / CAMERA_PROGRAM
    except ModuleNotFoundError:  # a checkout that is not installed
        return Path(__file__).resolve().parents[1] / "docs" / "examples" / CAMERA_PROGRAM


def _list_next_commands(checkpoint: str, options: ExportOptions, recipe: Path) -> dict[str, str]:
    """The commands of NEXT_COMMANDS; the test is on new videos if the run has no test list."""
    from everest.config.recipe import load_recipe

    data = load_recipe(recipe).data
    file, program = str(options.out), str(options.out.with_name(CAMERA_PROGRAM))
    command = ["everest", "eval", "--checkpoint", file, "--recipe", str(recipe)]
    command += ["--set", "eval.clips=1", "--set", "eval.crops=1"]
    if data.test is None:  # new videos, in a folder of each class or in a list
        source = "." if data.heads is None and data.task == "single-label" else "test.csv"
        command += ["--data", "NEW_CLIPS", "--set", f"data.test={source}"]
    commands = {"next": shlex.join(command)}
    commands["camera"] = shlex.join(["python", program, file, "0"])
    if options.precision == "fp32":
        command = ["everest", "export", checkpoint, "--to", "onnx", "--precision", "int8", "--calibrate"]
        output = str(options.out.with_name(f"{options.out.stem}-int8.onnx"))
        command += [str(Path(data.root, data.train or "")), "--output", output]
        commands["int8"] = shlex.join(command)
    return commands
