"""The graph of a model as a file: ONNX, or a program of torch.export.

A file is written only if it computes the same as the model; in int8, only if it keeps the same
tokens and its outputs still follow the model's.

B clips of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from everest.checkpoints.graph import INPUT, Exportable
from everest.checkpoints.quantize import quantize
from everest.errors import CheckpointError, EnvironmentProblem, RecipeError
from everest.system.files import atomic_file

TOLERANCE: Final = 1e-4  # our choice: of logits and features in float32; above it no file is written
MOST_LOST: Final = 0.5  # our choice: of the std of the outputs; above it, they hardly follow the model's
BATCHES: Final = (1, 3)  # of the comparison; another size is traced, to find one that is fixed in the graph
TRACED: Final = 2
PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
LARGEST: Final = 2**31 - 2**24  # bytes: protobuf ends at 2 GB; the rest is for the graph


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The distance of the outputs of a written file from the model's."""

    largest: float  # of a logit or feature; of a number in units of its standard deviation
    relative: float  # the root mean square, as a share of the outputs' std over the clips, of the worst head


RunFile = Callable[[Tensor], Sequence[Tensor]]  # the outputs of a file for clips as its graph takes them


@torch.no_grad()
def trace(exported: Exportable) -> ExportedProgram:
    """Trace the graph with torch.export, for any number of clips at once."""
    batch = Dim("batch", min=1)
    return torch.export.export(
        exported.graph.eval(), (exported.sample(TRACED),), dynamic_shapes={INPUT: {0: batch}}
    )


@torch.no_grad()
def compare(exported: Exportable, run: RunFile, *, what: str) -> float:
    """Return the largest difference between the outputs of a written file and of the model.

    The difference of a number is in units of the standard deviation of the numbers.

    Args:
        run: computes the outputs of the file for clips as the graph takes them.
        what: the subject of the error message.
    Raises:
        EnvironmentProblem: the difference is above the tolerance, or other tokens are kept.
    """
    differences, problem = [], None
    for batch in BATCHES:
        clips = exported.sample(batch)
        for expected, output in zip(exported.graph(clips), run(clips), strict=True):
            if expected.is_floating_point():
                differences.append(float(((expected - output) / exported.unit).abs().max()))
            elif not torch.equal(expected, output):
                problem = f"{what} keeps other tokens than this model"
    largest = float(np.max(differences))  # of a difference that is no number, nan
    if problem is None and not largest <= TOLERANCE:
        problem = f"{what} computes something else than this model (difference {largest:.1e})"
    if problem is not None:
        raise EnvironmentProblem(
            f"{problem}, so nothing was written; use the tested versions of its packages (see everest doctor)"
        )
    return largest


@torch.no_grad()
def compare_reduced(
    expected: Sequence[tuple[Tensor, Sequence[Tensor]]],
    run: RunFile,
    *,
    heads: Sequence[int],
    unit: Tensor,
) -> Difference:
    """Return the difference between a file in int8 and the model.

    Args:
        expected: at least two clips as the graph takes them, with the outputs of the model.
        heads, unit: `head_widths` and `unit` of `Exportable`.
    Raises:
        CheckpointError: other tokens are kept, or outputs are not finite or hardly follow the model's.
    """
    pairs = [(outputs, run(clips)) for clips, outputs in expected]
    problem = None
    for wanted, found in pairs:
        if not all(torch.equal(a, b) for a, b in zip(wanted[1:], found[1:], strict=True)):
            problem = "keeps other tokens"
        elif not found[0].isfinite().all():
            problem = "has outputs that are not finite, other"
    wanted = torch.cat([outputs[0] for outputs, _ in pairs]) / unit  # (B, outputs)
    lost = torch.cat([found[0] for _, found in pairs]) / unit - wanted
    # Each output around its own mean: the means of numbers, such as years, are far from each other.
    around = wanted - wanted.mean(dim=0)
    parts = zip(lost.split(list(heads), dim=1), around.split(list(heads), dim=1), strict=True)
    relative = max(float(own.norm() / spread.norm().clamp(min=1e-12)) for own, spread in parts)
    if problem is None and not relative <= MOST_LOST:
        problem = f"computes something else (difference {relative:.2f} of the outputs' standard deviation)"
    if problem is not None:
        raise CheckpointError(
            f"--precision int8: the file {problem} than the weights in float32; nothing was written"
        )
    return Difference(largest=float(lost.abs().max()), relative=relative)


def write_onnx(path: Path, exported: Exportable, *, calibration: Sequence[Tensor] = ()) -> Difference:
    """Write an .onnx file and return the difference between onnxruntime's outputs and the model's.

    Args:
        calibration: batches of clips as the graph takes them, for int8; the difference is measured on them.
    Raises:
        RecipeError: the weights are larger than an ONNX file can be.
        CheckpointError: see `compare_reduced`.
        EnvironmentProblem: a package is missing, or onnxruntime computes something else.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"--to onnx: not installed: {', '.join(missing)}; run `pip install 'everest-video[export]'`"
        )
    size = sum(tensor.nbytes for tensor in exported.graph.state_dict().values())
    if size > LARGEST:
        raise RecipeError(
            f"--to onnx: {size / 1e9:.1f} GB of weights, an ONNX file ends at 2 GB; use --to torch"
        )
    program = _onnx_program(exported)
    with atomic_file(path) as part:
        program.save(part, external_data=False)
        largest = compare(exported, _runner(part), what="onnxruntime")
        if exported.precision == "fp32":
            return Difference(largest=largest, relative=0.0)
        with torch.no_grad():
            expected = [(clips, exported.graph(clips)) for clips in calibration]
        quantize(part, calibration)
        return compare_reduced(expected, _runner(part), heads=exported.head_widths, unit=exported.unit)


def _runner(file: Path) -> RunFile:
    """Return the function that runs an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda clips: [torch.from_numpy(x) for x in session.run(None, {INPUT: clips.numpy()})]


def _onnx_program(exported: Exportable) -> Any:
    """Trace and translate the graph; the metadata is in the program."""
    import onnxscript

    op: Any = onnxscript.opset20

    def stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        # torch 2.15 does not translate a stable sort. TopK is one: it takes the first of equal values.
        length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    program = torch.onnx.export(
        trace(exported),
        (exported.sample(TRACED),),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(exported.graph.outputs),
        dynamic_shapes={INPUT: {0: "batch"}},  # its name
        custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(exported.metadata)
    return program


def write_program(path: Path, exported: Exportable) -> float:
    """Write a .pt2 file and return the largest difference between the file, read again, and the model.

    Raises:
        EnvironmentProblem: the file computes something else.
    """
    program = trace(exported)
    with atomic_file(path) as part:
        with part.open("wb") as file:
            torch.export.save(program, file, extra_files=exported.metadata)
        with part.open("rb") as file:
            written = torch.export.load(file).module()
        return compare(exported, lambda clips: written(clips), what="the written program")
