"""A classifier in an ONNX file of `everest export`, run by onnxruntime and evaluated like a checkpoint.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from everest.checkpoints.graph import INPUT, INSTALL, KEPT
from everest.data.clip_format import ClipFormat
from everest.data.frames import SAMPLINGS
from everest.errors import CheckpointError, EnvironmentProblem, shown
from everest.models.classifier import answers
from everest.models.spec import ModelSpec
from everest.system.json_text import parse_json

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class ExportedClassifier(nn.Module):
    """An exported classifier, which takes clips of bytes as a `VideoClassifier` does.

    Attributes:
        spec: of the model that was exported, with the token selection of the file.
        clip: the clips that it takes; the stride is 1 if the file does not state it.
        knows_stride: whether the file states the stride of its clips.
        precision: of the network: fp32 or int8.
    """

    def __init__(self, file: Path, session: InferenceSession, metadata: dict[str, str]) -> None:
        super().__init__()
        settings, classes, clip, given = (
            parse_json(metadata[name]) for name in ("settings", "classes", "clip", "input")
        )
        self.file, self._session = file, session
        self.spec = ModelSpec.from_settings(settings, source=file)
        self.selector, self.heads = self.spec.selection, self.spec.answered
        self.num_classes = sum(head.outputs for head in self.heads)  # the outputs of all heads
        self.class_names: tuple[str, ...] | None = None if classes is None else tuple(classes)
        if classes is not None and not self.spec.heads and len(classes) != self.num_classes:
            raise ValueError(f"{len(classes)} names of classes for {self.num_classes} outputs")
        self.precision = metadata["precision"]
        self.takes_bytes = given["dtype"] == "uint8"
        self.knows_stride = clip["stride"] is not None
        self.clip = ClipFormat(
            frames=self.spec.frames,
            stride=clip["stride"] or 1,
            size=self.spec.size,
            sampling=clip["sampling"] or "dense",
            fps=clip["fps"],
            mean=self.spec.pixels.mean,
            std=self.spec.pixels.std,
        )
        if self.clip.sampling not in SAMPLINGS:
            raise ValueError(f"no sampling '{self.clip.sampling}'")

    def forward(self, frames: Tensor, *, keep: float | None = None) -> Tensor:
        """Compute the outputs (B, outputs) of clips (B, C, T, H, W) uint8, on the CPU.

        Args:
            keep: must be None: the file encodes the tokens that it was exported for.
        """
        assert keep is None, "an exported file has one keep ratio"
        frames = frames.cpu()
        clips = frames.permute(0, 2, 3, 4, 1) if self.takes_bytes else self.spec.pixels.normalize(frames)
        outputs, _ = self._session.run(None, {INPUT: clips.contiguous().numpy()})
        return torch.from_numpy(outputs)

    def answers(self, outputs: Tensor) -> Tensor:
        """Convert outputs (..., outputs) to float32 probabilities; numbers are in their unit already."""
        return answers(outputs, tuple(replace(head, mean=0.0, std=1.0) for head in self.heads))


def open_exported(file: Path) -> ExportedClassifier:
    """Open a classifier that `everest export --to onnx` wrote. It uses as many threads as torch.

    Raises:
        CheckpointError: damaged, of another program, or not of a classifier.
        EnvironmentProblem: onnxruntime is not installed.
    """
    session = _open_session(file)
    metadata = session.get_modelmeta().custom_metadata_map
    inputs, outputs = ([each.name for each in part] for part in (session.get_inputs(), session.get_outputs()))
    is_ours = metadata.get("format") == "everest" and metadata.get("kind") == "classifier"
    if not is_ours or inputs != [INPUT] or outputs[1:] != [KEPT]:
        raise CheckpointError(
            f"{file}: not an ONNX classifier of everest; export a run of finetune --to onnx"
        )
    try:
        return ExportedClassifier(file, session, metadata)
    except (KeyError, TypeError, ValueError) as error:
        why = shown(error) if isinstance(error, ValueError) else "a value is missing, or of another type"
        raise CheckpointError(f"{file}: its metadata is damaged ({why}); export it again") from error


def _open_session(file: Path) -> InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentProblem(f"{file}: needs onnxruntime; {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{file}: onnxruntime cannot read it ({shown(reason)})") from error
