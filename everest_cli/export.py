"""`everest export`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from everest_cli import options as o
from everest_cli.option_values import read_shares
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.checkpoints.load import LoadedModel


Format = Literal["hf", "onnx", "torch"]  # the program that reads the export
SUFFIXES: Final = {"onnx": ".onnx", "torch": ".pt2"}


def export(
    checkpoint: Annotated[str, typer.Argument(metavar="C", help=o.CHECKPOINT_HELP)],
    to: Annotated[
        Format,
        typer.Option("--to", help="A transformers folder, an ONNX file, or one of torch.export."),
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="D", help="The folder, or the .onnx or .pt2 file.")
    ],
    keep: o.Keep = None,
    uint8: Annotated[
        bool,
        typer.Option("--uint8", help="The graph takes uint8 frames (B, T, H, W, 3) and normalizes them."),
    ] = False,
    which: o.WhichWeights = None,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No report on stderr.")] = False,
) -> None:
    """Export a model and check its outputs against everest's; prints the path.

    Example: everest export runs/finetune --to onnx --output model.onnx
    """
    _check_out(out, to, overwrite=overwrite, keep=keep, uint8=uint8)

    from everest.checkpoints.load import all_weights, find_weights, open_model
    from everest.system.files import refuse_inputs

    weights = find_weights(checkpoint, which=which, quiet=quiet)
    refuse_inputs(out, all_weights(weights), option="--output")
    opened = open_model(weights, kind="transformer")
    if to == "hf":
        from everest.checkpoints.transformers import write_folder

        written = write_folder(out, opened)
        files = list(map(str, written.files))
        document = {"written": files, "difference": written.difference, "notes": written.notes}
    else:
        document = _graph(opened, out, to=to, keep=keep, uint8=uint8)
    if not quiet:
        say(f"differs from everest by {document['difference']:.1e} at most, on partly still clips of noise")
        for note in document["notes"]:
            say(f"note: {note}")
    print_json({"checkpoint": str(opened.file), "to": to, **document}) if as_json else typer.echo(out)


def _check_out(out: Path, to: Format, *, overwrite: bool, keep: float | None, uint8: bool) -> None:
    """Check early that the output can be written at the end."""
    from everest.errors import RecipeError
    from everest.system.files import check_new_file, check_new_folder

    if keep is not None:
        read_shares(str(keep))
    if to == "hf":
        if uint8:
            raise RecipeError("--uint8: transformers normalizes frames itself; use --to onnx or --to torch")
        if keep not in (None, 1):
            raise RecipeError("--keep: transformers encodes all tokens; --to onnx and --to torch select them")
        own = {"model.safetensors", "preprocessor_config.json"}
        check_new_folder(
            out, "config.json", option="--output", overwrite=overwrite, is_own=lambda name: name in own
        )
        return
    if out.suffix != SUFFIXES[to]:
        raise RecipeError(f"--output {out}: end its name in {SUFFIXES[to]}")
    check_new_file(out, option="--output", overwrite=overwrite)


def _graph(opened: LoadedModel, out: Path, *, to: Format, keep: float | None, uint8: bool) -> dict[str, Any]:
    from everest.checkpoints.describe import sampled_frames
    from everest.checkpoints.graph import exportable
    from everest.checkpoints.graph_files import write_onnx, write_program

    exported = exportable(opened, keep=keep, uint8=uint8)
    write = write_onnx if to == "onnx" else write_program
    difference = write(out, exported)
    outputs = ", ".join(exported.graph.outputs)
    notes = [f"frames ({exported.layout}) to {outputs}"]
    clip = json.loads(exported.metadata["clip"])
    if clip["stride"] is None:
        notes.append("the weights do not state the stride of their clips, so the file does not either")
    else:
        notes.append(sampled_frames(stride=clip["stride"], sampling=clip["sampling"], fps=clip["fps"]))
    return {"written": [str(out)], "difference": difference, "clip": clip, "notes": notes}
