"""Folders of images that are read as videos: their images in order, and the pixels of an image."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from everest.system.storage import Location, RemotePath
from everest.video.folders import VIDEO_SUFFIXES, images_in
from everest.video.source import ShardMember, Video, decoder_input
from everest.video.stream import VideoError, check_frame_size, decoder_errors

NO_SECONDS: Final = "a folder of images has no seconds; make a video of it by everest prepare encode"
IMAGE_FORMATS: Final = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # read with any suffix


def image_folder(path: Video) -> Location | None:
    """The folder if a video is a folder of images; None for a file.

    A path with a video suffix is a file: the storage is not asked.
    """
    is_remote_file = isinstance(path, RemotePath) and path.suffix.lower() in VIDEO_SUFFIXES
    if isinstance(path, ShardMember) or is_remote_file:
        return None
    return path if path.is_dir() else None


def video_files(path: Video) -> Sequence[Video]:
    """The files of a video: the video itself, or the images of its folder."""
    folder = image_folder(path)
    return [path] if folder is None else images_in(folder)


def image_frames(folder: Location) -> Sequence[Location]:
    """The images that are the frames of a video, in their order.

    Raises:
        VideoError: the folder has no images.
    """
    images = images_in(folder)
    if not images:
        raise VideoError(folder, "a folder without jpg or png images")
    return images


def read_image(file: Location) -> np.ndarray:
    """Read an image of a folder of images: (H, W, 3) uint8 RGB, rotated and mirrored by its EXIF data.

    Pixels of 16 bits keep their upper 8 bits.

    Raises:
        VideoError: the image is damaged, too large, an animation, not a regular file, or has 32-bit pixels.
    """
    folder = file.parent
    if isinstance(file, Path) and file.exists() and not file.is_file():  # reading a named pipe would wait
        raise VideoError(folder, f"{file.name}: not a regular file")
    with decoder_errors(folder, f"{file.name}: cannot be read"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, before decoding
        with Image.open(decoder_input(file), formats=IMAGE_FORMATS) as image:
            check_frame_size(folder, (image.height, image.width), f"{file.name}: an image")
            is_animated = getattr(image, "is_animated", False) and image.format != "MPO"  # MPO: main photo
            if is_animated or image.mode in ("I", "F"):  # the range of values of 32 bits is unknown
                problem = "an animation, or pixels of 32 bits; save it as an image of 8 bits"
                raise VideoError(folder, f"{file.name}: {problem}")
            with suppress(SyntaxError, struct.error):  # with damaged EXIF data, the image stays as stored
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):  # Pillow would replace all values above 255 by 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image.info.pop("transparency", None)  # it is not used, and Pillow warns of some kinds
            return np.asarray(image.convert("RGB"))
