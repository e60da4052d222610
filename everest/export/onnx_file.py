"""A model as an ONNX file: any number of clips at once, the choice of tokens inside the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from everest.errors import EnvironmentProblem, RecipeError
from everest.export.graph import INPUT, TRACED, Exportable, about_text, compare, sample_clips, trace
from everest.system.files import write_atomically

PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
LARGEST: Final = 2**31 - 2**24  # bytes: protobuf ends at 2 GB; some are left for the graph


def check_packages() -> None:
    """Raise EnvironmentProblem when a package is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"--to onnx: not installed: {', '.join(missing)}; run `pip install 'everest-video[export]'`"
        )


def write_onnx(path: Path, exported: Exportable) -> float:
    """Write an .onnx file; the largest difference between what onnxruntime makes of it and our model.

    Raises:
        RecipeError: the weights are larger than an ONNX file can be.
        EnvironmentProblem: a package is missing, or onnxruntime computes something else.
    """
    check_packages()
    size = sum(tensor.nbytes for tensor in exported.graph.state_dict().values())
    if size > LARGEST:
        raise RecipeError(
            f"--to onnx: {size / 1e9:.1f} GB of weights, an ONNX file ends at 2 GB; use --to torch"
        )
    program = _translated(exported)
    program.model.metadata_props.update(about_text(exported.about))
    differences = []

    def write(part: Path) -> None:
        program.save(part, external_data=False)
        differences.append(compare(exported, _runner(part), what="onnxruntime"))

    write_atomically(path, write)
    return differences[0]


def _translated(exported: Exportable) -> torch.onnx.ONNXProgram:
    outputs = exported.graph.outputs
    program = torch.onnx.export(
        trace(exported),
        (sample_clips(exported.spec, TRACED),),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(outputs),
        dynamic_shapes={INPUT: {0: "batch"}},  # its name
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort()},
        verbose=False,
    )
    assert program is not None
    return program


def _stable_sort() -> Callable[..., Any]:
    """ONNX's name for a stable sort, which torch 2.15 does not translate: TopK takes the first of equals."""
    import onnxscript

    op: Any = onnxscript.opset20

    def sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    return sort


def _runner(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """Computes the outputs of a file for clips (B, 3, T, H, W)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(clips: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {INPUT: clips.numpy()})]

    return run
