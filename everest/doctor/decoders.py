"""The decoders of videos, each on a file that is written here. F frames, H W pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from everest.doctor.finding import Finding, first_line
from everest.errors import EnvironmentProblem

if TYPE_CHECKING:
    from torch import Tensor

ASKED: Final = (11, 0, 7)  # frames, out of order
CLOSE: Final = 4.0  # levels of a mean difference: compression; another frame differs by far more
NEEDED: Final = "pyav"  # reads every file; the others are faster on some
REINSTALL: Final = "run `pip install --force-reinstall av`"


def check_decoders() -> Iterator[Finding]:
    """FFmpeg, and a real decode by every back-end."""
    try:
        import av
    except Exception as error:  # whatever a broken package raises
        found = f"cannot be imported: {first_line(error)}"
        yield Finding(name="PyAV", state="broken", found=found, mend=REINSTALL)
        return
    versions = (
        f"{name} {'.'.join(map(str, version))}" for name, version in sorted(av.library_versions.items())
    )
    yield Finding(name="FFmpeg of PyAV", state="ok", found=", ".join(versions))
    try:
        from everest.video.backends import DECODERS
        from everest.video.writer import write_video
    except Exception as error:
        found = f"not tried: {first_line(error)}"
        yield Finding(name="decoders", state="broken", found=found, mend="mend the packages above first")
        return
    frames = _rendered()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rendered.mp4"
        write_video(path, frames, fps=12)
        for name in DECODERS:
            if name != "auto":
                yield _decoded(name, path, frames)


def _rendered() -> Tensor:
    """(16, 64, 96, 3) uint8: a bright bar that goes right."""
    import torch

    frames = torch.full((16, 64, 96, 3), 40, dtype=torch.uint8)
    for number in range(16):
        frames[number, :, 4 * number : 4 * number + 24] = 220
    return frames


def _decoded(name: str, path: Path, frames: Tensor) -> Finding:
    from everest.video.reader import VideoError, read_frames

    title = f"decoder {name}"
    try:
        read = read_frames(path, ASKED, decoder=name)  # (F, H, W, 3)
    except EnvironmentProblem as error:
        return Finding(
            name=title, state="absent", found=first_line(error), mend="data.decoder: auto does without"
        )
    except VideoError as error:
        return _trouble(name, error.reason)
    except Exception as error:  # whatever a broken package raises
        return _trouble(name, first_line(error))
    difference = float((read.float() - frames[list(ASKED)].float()).abs().mean())
    if difference > CLOSE:
        return _trouble(name, f"returns other frames than asked for (mean difference {difference:.1f})")
    return Finding(name=title, state="ok", found=f"reads the right {len(ASKED)} frames")


def _trouble(name: str, found: str) -> Finding:
    if name == NEEDED:
        return Finding(name=f"decoder {name}", state="broken", found=found, mend=REINSTALL)
    return Finding(name=f"decoder {name}", state="warning", found=found, mend="leave data.decoder at auto")
