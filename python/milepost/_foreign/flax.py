"""Flax's msgpack files: one file a checkpoint, a state dict whose arrays are extension types.

What begins the file decides: a map whose first key is text, or an array on its own. Pickle, HDF5,
PNG and NumPy files begin with bytes that msgpack could read as well; their second byte tells them
apart.
"""

from __future__ import annotations

from .place import Place

_HEAD_BYTES = 512
#: Flax's extension types: array, complex number, scalar.
_EXTENSIONS = (1, 2, 3)
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def is_msgpack(place: Place) -> bool:
    """Whether the file begins as a checkpoint of `flax.training.checkpoints`."""
    head = place.read(0, _HEAD_BYTES)
    if not head:
        return False
    first = head[0]
    if first == 0x80:
        return place.size() == 1
    if 0x81 <= first <= 0x8F:
        return _is_key(head[1:])
    if first == 0xDE:
        return int.from_bytes(head[1:3], "big") > 0 and _is_key(head[3:])
    if first == 0xDF:
        return int.from_bytes(head[1:5], "big") > 0 and _is_key(head[5:])
    return _is_extension(head, place.size())


def _is_key(head: bytes) -> bool:
    """Whether `head` begins with text that could be a key."""
    if not head:
        return False
    width = {0xD9: 1, 0xDA: 2, 0xDB: 4}.get(head[0])
    if 0xA0 <= head[0] <= 0xBF:
        start, length = 1, head[0] & 0x1F
    elif width is not None:
        start, length = 1 + width, int.from_bytes(head[1 : 1 + width], "big")
    else:
        return False
    text = head[start : start + length]
    if len(text) < min(length, _HEAD_BYTES - 16):
        return False
    try:
        return text.decode("utf-8", "strict").isprintable()
    except UnicodeDecodeError as error:
        # A long key may be cut within a character by the head's end.
        return error.start >= len(text) - 3 and len(text) < length


def _is_extension(head: bytes, size: int) -> bool:
    """Whether the whole file is one extension of Flax's: an array or a scalar on its own."""
    width = {0xC7: 1, 0xC8: 2, 0xC9: 4}.get(head[0])
    if head[0] in _FIXED_EXTENSIONS:
        code, whole = head[1:2], 2 + _FIXED_EXTENSIONS[head[0]]
    elif width is not None:
        code = head[1 + width : 2 + width]
        whole = 2 + width + int.from_bytes(head[1 : 1 + width], "big")
    else:
        return False
    return bool(code) and code[0] in _EXTENSIONS and whole == size
