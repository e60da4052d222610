"""Video files and folders of images."""

import struct
from pathlib import Path
from random import Random

from .bases import CONTAINERS, Bases
from .case import Case, Kind, case_of
from .mutations import damage_bytes, damage_content, remove_file, replace_by_folder

CODES = frozenset({4})
MP4_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"udta", b"edts")
Box = tuple[bytes, bytes]  # type, content


def make_video(rng: Random, folder: Path, bases: Bases) -> Case:
    """A damaged clip, and a command that decodes it."""
    suffix = rng.choice(("mp4", "mp4", "mp4", *CONTAINERS))
    data = (bases.root / "containers" / f"clip.{suffix}").read_bytes()
    if suffix in ("mp4", "mov") and rng.random() < 0.5:
        data = join_boxes(damage_boxes(rng, split_boxes(data)))
    else:
        data = damage_bytes(rng, data)
    name = f"clip.{suffix if rng.random() < 0.9 else rng.choice(sorted(CONTAINERS))}"
    (folder / name).write_bytes(data)
    return _watch(rng, folder, bases, name)


def make_images(rng: Random, folder: Path, bases: Bases) -> Case:
    """A folder of images with one to three damages."""
    images = bases.copy("images", folder)
    for _ in range(rng.randint(1, 3)):
        files = sorted(path for path in images.iterdir() if path.is_file())
        if files:
            rng.choice(_IMAGE_DAMAGES)(rng, rng.choice(files))
    return _watch(rng, folder, bases, "images")


def _watch(rng: Random, folder: Path, bases: Bases, video: str) -> Case:
    command = rng.choices(("predict", "timeline", "frames", "extract", "mask"), weights=(8, 3, 4, 2, 1))[0]
    if command in ("predict", "timeline", "extract"):
        bases.copy("classifier", folder)
    model, clip = "-c classifier --gpus cpu -q", "--frames 4 --stride 1 --size 32"
    commands = {
        "predict": f"predict {video} {model} --json",
        "timeline": f"timeline {video} {model} --step 0.3 --json",
        "extract": f"extract {video} {model} -o out/x.safetensors",
        "frames": f"select-frames {video} {clip} --json",
        "mask": f"visualize-mask {video} {clip} -o out",
    }
    return case_of(commands[command], CODES)


def split_boxes(data: bytes) -> list[Box]:
    """The boxes of a file, or of the content of a box."""
    boxes = []
    while len(data) >= 8:
        size, name = struct.unpack(">I4s", data[:8])
        if not 8 <= size <= len(data):
            break
        boxes.append((name, data[8:size]))
        data = data[size:]
    return boxes


def join_boxes(boxes: list[Box]) -> bytes:
    return b"".join(struct.pack(">I4s", len(content) + 8, name) + content for name, content in boxes)


def damage_boxes(rng: Random, boxes: list[Box]) -> list[Box]:
    """Damage one box, at any depth: exchanged, removed, repeated, renamed, or its content changed."""
    place = rng.randrange(len(boxes))
    name, content = boxes[place]
    if name in MP4_CONTAINERS and split_boxes(content) and rng.random() < 0.8:
        inner = join_boxes(damage_boxes(rng, split_boxes(content)))
        return [*boxes[:place], (name, inner), *boxes[place + 1 :]]
    match rng.randrange(6):
        case 0:
            other = rng.randrange(len(boxes))
            boxes[place], boxes[other] = boxes[other], boxes[place]
        case 1:
            del boxes[place]
        case 2:
            boxes.insert(place, boxes[place])
        case 3:
            names = (b"free", b"skip", b"moov", b"trak", b"stts", b"\x00\x00\x00\x00")
            boxes[place] = (rng.choice(names), content)
        case 4:  # one number of a table: counts, times, offsets, sizes
            if len(content) >= 4:
                start = rng.randrange(0, len(content) - 3, 4) if len(content) > 4 else 0
                number = rng.choice((0, 1, 2, 255, 65536, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)))
                content = content[:start] + struct.pack(">I", number) + content[start + 4 :]
            boxes[place] = (name, content)
        case _:
            boxes[place] = (name, damage_bytes(rng, content, most=2))
    return boxes


def _empty(rng: Random, file: Path) -> None:
    file.write_bytes(b"")


def _resize(rng: Random, file: Path) -> None:
    from PIL import Image

    size = rng.choice(((32, 26), (1, 1), (24, 32), (400, 2), (16, 16)))
    mode = rng.choice(("RGB", "L", "RGB"))
    Image.new(mode, size, 100).save(file)


def _other_format(rng: Random, file: Path) -> None:
    from PIL import Image

    mode = rng.choice(("RGBA", "P", "1", "I;16", "LA", "CMYK"))
    form = "TIFF" if rng.random() < 0.2 else "PNG" if mode != "CMYK" else "JPEG"
    Image.new(mode, (32, 24)).save(file, format=form)


def _rename(rng: Random, file: Path) -> None:
    names = ("a.jpg", "10.png", "Ü.JPG", "x y.jpeg", "001", ".hidden.jpg")
    others = ("a.gif", "a.mp4", "[red].png", "\udcff.jpg")
    file.rename(file.with_name(rng.choice((*names, *others))))


def _link(rng: Random, file: Path) -> None:
    file.unlink()
    file.symlink_to(rng.choice((file.name, "..", "/nowhere", file.parent)))


_IMAGE_DAMAGES = (
    *(damage_content, damage_content, damage_content, remove_file, _empty, _resize, _other_format),
    *(_rename, _link, replace_by_folder),
)

VIDEO_KINDS = (
    Kind(name="videos", make=make_video, share=1500, needs=("classifier", "containers")),
    Kind(name="images", make=make_images, share=500, needs=("classifier", "images")),
)
