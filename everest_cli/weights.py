"""`everest weights` and `everest convert`: weights of other programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from everest.errors import CheckpointError, RecipeError, join_first
from everest.system.files import check_new_file, refuse_inputs
from everest_cli import options as o
from everest_cli.options import argument, option, read_numbers, read_size
from everest_cli.output import print_json, print_result, print_table, say

if TYPE_CHECKING:
    from everest.checkpoints.public_weights import PublicWeights
    from everest.converters.recognition import Hints

LIST_NOTES = (
    "Tested with random weights of the same names and shapes, three small image encoders with real ones. "
    "Further image models of timm: `--init timm:NAME`; docs/starting.md lists the families that load."
)
MAX_NAMES: Final = 20  # maximum number of class names that a report lists
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


def list_commands(weights: PublicWeights) -> list[str]:
    partial = " --partial" if weights.gives == "encoder" else ""
    convert = f"everest convert {weights.name} --output {weights.source}{partial}"
    start = [*([convert] if weights.page else []), f"everest train VIDEOS --init {weights.source}"]
    if weights.gives == "classifier":
        return [*start, f"everest predict VIDEOS --checkpoint {weights.source}"]
    settings = (f"--set {setting}" for setting in (f"model.backbone={weights.backbone}", *weights.settings))
    options = f"--data VIDEOS --init {weights.source} {' '.join(settings)}"
    return [*start, *(f"everest {stage} --recipe RECIPE {options}" for stage in ("pretrain", "finetune"))]


def _make_document(weights: PublicWeights) -> dict[str, Any]:
    return {**asdict(weights), "commands": list_commands(weights), "downloaded": False}


@app.command(epilog="Example: everest weights show videomae-base")
def show(
    name: str = argument("NAME", "A name from `everest weights list`."), as_json: bool = o.AS_JSON
) -> None:
    """Print all that is known about public weights, and the commands to begin with."""
    from everest.checkpoints.public_weights import USE_BY_KIND, find_public_weights

    row = find_public_weights(name)
    if as_json:
        print_json(_make_document(row))
        return
    lines = {
        "weights": row.name,
        "from": row.page or "downloaded by its name",
        "method": f"{row.method}, {row.backbone}, trained on {row.data}",
        "license": f"{row.license} (as its publisher states it; the one shown on download counts)",
        "input": f"{row.frames} x {row.size} x {row.size}",
        "gives": USE_BY_KIND[row.gives],
        "first for": row.first_for,
        "tested": row.tested or f"random weights of the names and shapes of {row.layout}; never downloaded",
    }
    shown = [f"{key + ':':<10} {value}" for key, value in lines.items() if value is not None]
    typer.echo("\n".join([*shown, "\n  ".join(["commands:", *list_commands(row)])]))


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
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
        """The settings that the user knows about a checkpoint of another program."""
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
    from everest.converters.foreign_checkpoint import (
        INDEX_SUFFIX,
        find_everest_file,
        locate_checkpoint,
        read_foreign,
    )
    from everest.lists.labels import read_class_names

    path = locate_checkpoint(checkpoint, notify=say)
    if out is not None:
        folder = path.parent if path.name.endswith(INDEX_SUFFIX) else path
        files = folder.iterdir() if folder.is_dir() else ()  # a checkpoint may have several files
        refuse_inputs(out, [*find_run_weights(path), *files, options.classes])
    hints_given = (options.family, options.frames, options.size, options.heads, options.classes)
    everest_file, weights = find_everest_file(path), None
    if is_timm_name(checkpoint):
        if options.partial or any(value is not None for value in hints_given):
            raise RecipeError(f"{checkpoint}: converted as it is; only --output, --inspect and --json apply")
        weights = open_weights(path)
        document = describe_weights(path, weights)
    elif everest_file is not None:
        if out is not None:
            raise CheckpointError(f"{path}: written by everest; use it without conversion")
        document = describe_weights(everest_file, open_model(everest_file).weights)
    elif out is None:
        document = describe_checkpoint(identify(read_foreign(path), options.hints))
    else:
        names = None if options.classes is None else read_class_names(options.classes)
        conversion = convert(read_foreign(path), options.hints, partial=options.partial, classes=names)
        weights, document = conversion.weights, describe_checkpoint(conversion.identity)
    if out is None or weights is None:
        print_result(document, "\n".join(_list_lines(document)), as_json=as_json)
        return
    document["written"] = str(out)
    weights.save(out)
    say(*_list_lines(document))
    print_result(document, out, as_json=as_json)


def _list_lines(document: dict[str, Any]) -> Iterator[str]:
    """Yield a line per known property; long lists of names are grouped."""
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
            yield f"classes: {join_first(value, MAX_NAMES)}"
        elif name == "origin":
            files = []
            while value:  # the file, the weights it started from, and so on
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
