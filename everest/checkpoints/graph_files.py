"""The graph of a model as a file: ONNX, or a program of torch.export.

A file is written only if it computes the same as the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from everest.checkpoints.graph import INPUT, Exportable
from everest.errors import EnvironmentProblem, RecipeError
from everest.system.files import atomic_file

TOLERANCE: Final = 1e-4  # our choice: of logits and features in float32; above it no file is written
BATCHES: Final = (1, 3)  # of the comparison; another size is traced, to find one that is fixed in the graph
TRACED: Final = 2
PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
LARGEST: Final = 2**31 - 2**24  # bytes: protobuf ends at 2 GB; the rest is for the graph


@torch.no_grad()
def trace(exported: Exportable) -> ExportedProgram:
    """Trace the graph with torch.export, for any number of clips at once."""
    batch = Dim("batch", min=1)
    return torch.export.export(
        exported.graph.eval(), (exported.sample(TRACED),), dynamic_shapes={INPUT: {0: batch}}
    )


@torch.no_grad()
def compare(exported: Exportable, run: Callable[[Tensor], Sequence[Tensor]], *, what: str) -> float:
    """Return the largest difference between the outputs of a written file and of the model.

    The difference of a number is in units of the standard deviation of the numbers.

    Args:
        run: computes the outputs of the file for clips as the graph takes them.
        what: the subject of the error message.
    Raises:
        EnvironmentProblem: the difference is above the tolerance, or other tokens are kept.
    """
    largest = 0.0
    for batch in BATCHES:
        clips = exported.sample(batch)
        for expected, output in zip(exported.graph(clips), run(clips), strict=True):
            if not expected.is_floating_point():
                largest = largest if torch.equal(expected, output) else float("inf")
            else:
                largest = max(largest, float(((expected - output) / exported.unit).abs().max()))
    if not largest <= TOLERANCE:
        raise EnvironmentProblem(
            f"{what} computes something else than this model (difference {largest:.1e}), so nothing was "
            "written; use the tested versions of its packages (see everest doctor)"
        )
    return largest


def write_onnx(path: Path, exported: Exportable) -> float:
    """Write an .onnx file and return the largest difference between onnxruntime's outputs and the model's.

    Raises:
        RecipeError: the weights are larger than an ONNX file can be.
        EnvironmentProblem: a package is missing, or onnxruntime computes something else.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"--to onnx: not installed: {', '.join(missing)}; run `pip install 'everest-video[export]'`"
        )
    import onnxruntime
    import onnxscript

    size = sum(tensor.nbytes for tensor in exported.graph.state_dict().values())
    if size > LARGEST:
        raise RecipeError(
            f"--to onnx: {size / 1e9:.1f} GB of weights, an ONNX file ends at 2 GB; use --to torch"
        )
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
    with atomic_file(path) as part:
        program.save(part, external_data=False)
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        return compare(
            exported,
            lambda clips: [torch.from_numpy(x) for x in session.run(None, {INPUT: clips.numpy()})],
            what="onnxruntime",
        )


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
