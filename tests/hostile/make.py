"""Makes the hostile safetensors files beside it; run from anywhere. Fixtures are immutable: a new case, a new file.

What each must be refused with is in tests/it/foreign.rs.
"""

import json
import struct
from pathlib import Path

HERE = Path(__file__).parent


def write(name: str, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    path = HERE / name
    path.parent.mkdir(exist_ok=True)
    prefix = struct.pack("<Q", len(header) if length is None else length)
    path.write_bytes(prefix + header + data)


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensors(name: str, data: bytes = b"", **members: dict) -> None:
    write(f"{name}.safetensors", json.dumps(members).encode(), data)


(HERE / "short.safetensors").write_bytes(b"\x10\0\0\0\0")
write("header_beyond_file.safetensors", b"{}", length=1000)
write("header_huge.safetensors", b"{}", length=1 << 63)
write("header_not_json.safetensors", b'{"a": ')
write("header_not_utf8.safetensors", b'{"\xff": 1}')
one = json.dumps(tensor("U8", [4], 0, 4))
write("name_twice.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), b"1234")
tensors("hole", b"12345", a=tensor("U8", [2], 0, 2), b=tensor("U8", [2], 3, 5))
tensors("overlap", b"123", a=tensor("U8", [2], 0, 2), b=tensor("U8", [2], 1, 3))
tensors("ends_before_it_begins", b"1234", a=tensor("U8", [4], 4, 0))
tensors("wrong_size", b"1234", a=tensor("F32", [2], 0, 4))
tensors("shape_overflows", b"", a=tensor("F32", [1 << 62, 1 << 62], 0, 0))
tensors("offsets_overflow", b"", a=tensor("U8", [4], (1 << 64) - 4, (1 << 64) - 1))
tensors("data_missing", b"12", a=tensor("U8", [4], 0, 4))
tensors("data_left_over", b"12345", a=tensor("U8", [4], 0, 4))
tensors("unknown_dtype", b"1234", a=tensor("Q4_K", [4], 0, 4))
tensors("half_a_byte", b"12", a=tensor("F4", [3], 0, 2))
tensors("rank_65", b"1", a=tensor("U8", [1] * 65, 0, 1))
tensors("negative_shape", b"1", a=tensor("U8", [-1], 0, 1))
tensors("metadata_not_text", b"", __metadata__={"a": 1})


def sharded(case: str, weight_map: dict, **files: dict) -> None:
    for file, members in files.items():
        write(f"{case}/{file}.safetensors", json.dumps(members).encode(), b"1234")
    (HERE / case).mkdir(exist_ok=True)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (HERE / case / "model.safetensors.index.json").write_text(index)


a = {"a": tensor("U8", [4], 0, 4)}
sharded("index_leaves_directory", {"a": "../short.safetensors"})
sharded("index_without_file", {"a": "x.safetensors", "b": "gone.safetensors"}, x=a)
sharded("index_names_absent_tensor", {"a": "x.safetensors", "b": "x.safetensors"}, x=a)
sharded("index_lacks_tensor", {"b": "y.safetensors"}, y=a)
b = {"b": tensor("U8", [4], 0, 4)}
sharded("index_names_other_file", {"a": "x.safetensors", "b": "x.safetensors"}, x=a, y=b)
