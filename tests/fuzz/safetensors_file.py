"""Takes safetensors files apart and puts them together with damages: header, texts in it, tensors."""

import json
import struct
from random import Random
from typing import Any

from .mutations import damage_bytes, damage_tree, nasty

METADATA = "__metadata__"
TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "U64", "C64", "nope")


def split_file(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """The header, and the bytes of the tensors; None if an earlier damage prevents it."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (struct.error, ValueError, OverflowError):
        return None
    is_header = isinstance(header, dict) and isinstance(header.get(METADATA, {}), dict)
    return (header, data[8 + length :]) if is_header else None


def join_file(header: Any, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + tensors


def damage_file(rng: Random, data: bytes) -> bytes:
    """One damage to a whole file."""
    parts = split_file(data)
    if parts is None:
        return damage_bytes(rng, data)
    header, tensors = parts
    draw = rng.random()
    if draw < 0.45:
        return join_file(damage_metadata(rng, header), tensors)
    if draw < 0.6:
        return join_file(_damage_entry(rng, header), tensors)
    if draw < 0.7:
        return join_file(damage_tree(rng, header), tensors)
    if draw < 0.8:
        return join_file(header, damage_bytes(rng, tensors))
    if draw < 0.87:
        length = rng.choice((0, 1, 7, len(data), len(data) * 2, 2**31, 2**63 - 1, 2**64 - 1))
        return struct.pack("<Q", length) + data[8:]
    return damage_bytes(rng, data)


def damage_metadata(rng: Random, header: dict[str, Any]) -> dict[str, Any]:
    """Damage one of the texts; a text that is JSON is damaged as a tree or as text."""
    texts = dict(header.get(METADATA) or {})
    if not texts:
        return damage_tree(rng, header)
    name = rng.choice([*sorted(texts), "settings", "notes", "classes"])
    try:
        value = json.loads(texts.get(name, "null"))
    except ValueError:
        value = texts[name]
    draw = rng.random()
    if draw < 0.1:
        texts.pop(name, None)
    elif draw < 0.2:
        texts[name] = str(nasty(rng))
    elif draw < 0.3:
        texts[name] = damage_bytes(rng, texts.get(name, "").encode()).decode("latin-1")
    elif isinstance(value, dict | list):
        texts[name] = json.dumps(damage_tree(rng, value))
    else:
        texts[name] = json.dumps(nasty(rng))
    return {**header, METADATA: texts}


def _damage_entry(rng: Random, header: dict[str, Any]) -> dict[str, Any]:
    """Change name, type, shape or place of one tensor."""
    changed = dict(header)
    names = sorted(name for name in changed if name != METADATA)
    if not names:
        return changed
    name, other = rng.choice(names), rng.choice(names)
    entry = dict(changed[name])
    match rng.randrange(6):
        case 0:
            changed[rng.choice((name + "x", "", other, "model/x", str(nasty(rng))))] = changed.pop(name)
            return changed
        case 1:
            entry["dtype"] = rng.choice(TYPES)
        case 2:
            shape = entry["shape"]
            wrong = (shape[::-1], [*shape, 1], [1, *shape], shape[1:], [0], [-1], [2**62, 4])
            entry["shape"] = rng.choice(wrong)
        case 3:
            start, end = entry["data_offsets"]
            wrong = ([end, start], [start, end + 8], [0, 0], [2**63, 2**64], [start])
            entry["data_offsets"] = rng.choice(wrong)
        case 4:
            changed[name], changed[other] = changed[other], changed[name]
            return changed
        case _:
            del changed[name]
            return changed
    changed[name] = entry
    return changed
