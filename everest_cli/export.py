"""`everest export`: a model for transformers or ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from everest.errors import RecipeError
from everest.system.files import check_new_file, check_new_folder, refuse_inputs, write_text
from everest.system.run_folder import WEIGHTS
from everest_cli import options as o
from everest_cli.options import argument, check_share, option
from everest_cli.output import print_result, say


def export(
    checkpoint: str = argument("C", o.CHECKPOINT_HELP),
    to: Literal["hf", "onnx"] = option("--to hf|onnx", "A transformers folder, or an ONNX file.", ...),
    out: Path = option("--output -o D", "The folder, or the .onnx file.", ...),
    keep: float | None = o.KEEP,
    precision: Literal["fp32", "int8"] = option(
        "--precision", "Precision of an ONNX network; tokens are selected in float32.", "fp32"
    ),
    calibrate: Path | None = option("--calibrate LIST", "List or folder of typical videos, for int8."),
    evaluation: Path | None = option("--evaluation F", "Output of everest eval --json, for the model card."),
    which: o.Which | None = o.WHICH,
    overwrite: bool = o.OVERWRITE_FILES,
    as_json: bool = o.AS_JSON,
) -> None:
    """Export a model and check its outputs against everest's; prints the path.

    Example: everest export runs/finetune --to onnx --output model.onnx
    """
    if keep is not None:
        check_share(keep)
    if (precision == "int8") != (calibrate is not None) or (precision == "int8" and to != "onnx"):
        raise RecipeError(
            "--precision int8 needs --to onnx and --calibrate LIST (typical videos); "
            "--calibrate needs --precision int8"
        )
    if to == "hf":
        if keep not in (None, 1):
            raise RecipeError("--to hf: does not support --keep; use --to onnx")
        check_new_folder(out, overwrite=overwrite)
    elif out.suffix != ".onnx":
        raise RecipeError(f"--output {out}: end its name in .onnx")
    else:
        for path in (out, _card_of(out)):
            check_new_file(path, option="--output", overwrite=overwrite)

    from everest.checkpoints.load import all_weights, find_weights, open_model
    from everest.evaluation.card import model_card, read_evaluation

    weights = find_weights(checkpoint, which=which)
    refuse_inputs(out, all_weights(weights), option="--output")
    opened = open_model(weights, kind="transformer")
    measured = None if evaluation is None else read_evaluation(evaluation)
    if to == "hf":
        from everest.checkpoints.transformers import write_folder

        card = model_card(opened, evaluation=measured, file=WEIGHTS)
        document = write_folder(out, opened, card=card)
    else:
        from everest.checkpoints.graph import exportable
        from everest.checkpoints.graph_files import calibration_clips, write_onnx

        clips = [] if calibrate is None else calibration_clips(opened, calibrate, notify=say)
        exported = exportable(opened, keep=keep, precision=precision)
        card = model_card(replace(opened, spec=exported.spec), evaluation=measured, file=out.name)
        facts = write_onnx(out, exported, calibration=clips)
        document = {"written": [str(out), str(_card_of(out))], **facts}
        write_text(_card_of(out), card)
    on = "partly still clips of noise" if calibrate is None else f"the clips of {calibrate}"
    say(f"outputs differ from everest's by at most {document['difference']:.1e}, on {on}")
    say(*(f"note: {note}" for note in document["notes"]))
    print_result({"checkpoint": str(opened.file), "to": to, **document}, out, as_json=as_json)


def _card_of(out: Path) -> Path:
    """The model card of a file, next to it; transformers' folders have a README.md."""
    return out.with_name(f"{out.name}.CARD.md")
