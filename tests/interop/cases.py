"""Generated arrays: what is stored, how it is cut, how it is encoded.

A case is plain data and a pure function of (seed, number), so any failure is replayed by
`MILEPOST_SEED=<seed> MILEPOST_CASES=<count> pytest -k <id>`. Every data type, rank and codec appears at least
once however few cases are asked for: the lists are walked, not only sampled.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass, field

import ml_dtypes  # noqa: F401  registers its types with NumPy
import numpy as np

#: Bytes an element takes, by Zarr data type name.
ITEM_BYTES = {
    "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
    "bfloat16": 2, "int2": 1, "int4": 1, "uint2": 1, "uint4": 1,
    "float4_e2m1fn": 1, "float6_e2m3fn": 1, "float6_e3m2fn": 1,
    "float8_e3m4": 1, "float8_e4m3": 1, "float8_e4m3b11fnuz": 1, "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip

#: Bits of a stored byte that carry a value, where not all eight do.
ELEMENT_BITS = {
    "bool": 1, "int2": 2, "uint2": 2, "int4": 4, "uint4": 4,
    "float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6,
}  # fmt: skip

DTYPES = list(ITEM_BYTES)
CORE = DTYPES[: DTYPES.index("bfloat16")]
#: What TensorStore 0.1.86 does not know (reference §6.1).
NOT_TENSORSTORE = {"uint2", "uint4", "float6_e2m3fn", "float6_e3m2fn", "float8_e4m3"}
#: What stock zarr-python does not know: everything beyond the core types.
NOT_ZARR_PYTHON = set(DTYPES) - set(CORE)

CODECS = [
    "none", "zstd", "zstd:1", "zstd:-3", "zstd:19", "gzip", "gzip:1", "gzip:9",
    "blosc", "blosc:lz4", "blosc:lz4hc:9", "blosc:zstd:3:bitshuffle", "blosc:zlib:1:shuffle",
    "blosc:blosclz:5:noshuffle", "blosc:snappy:5:shuffle",
]  # fmt: skip

SIZES = [0, 1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 33]
ELEMENTS_MAX = 60_000


def seed_of_run() -> int:
    """The seed: MILEPOST_SEED, `random` for a fresh one, else a fixed one."""
    text = os.environ.get("MILEPOST_SEED", "20261122")
    return random.SystemRandom().randrange(2**32) if text == "random" else int(text)


SEED = seed_of_run()
COUNT = int(os.environ.get("MILEPOST_CASES", "300"))


@dataclass(frozen=True)
class Case:
    """One array and how it is stored."""

    number: int
    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...] | None
    shard: tuple[int, ...] | None
    codec: str
    transpose: tuple[int, ...] | None = None
    # The following are for arrays that others write and we read.
    endian: str = "little"
    separator: str = "/"
    index_location: str = "end"
    index_crc: bool = True
    chunk_crc: bool = False
    nested: tuple[int, ...] | None = None
    fill: object = 0
    holes: bool = False
    seed: int = field(default=SEED, repr=False)

    @property
    def id(self) -> str:
        def dims(d):
            return "auto" if d is None else "x".join(map(str, d)) or "0d"

        parts = [f"{self.number:03}", self.dtype, dims(self.shape), "c" + dims(self.chunk)]
        if self.shard is not None:
            parts.append("s" + dims(self.shard))
        parts.append(self.codec)
        if self.transpose is not None:
            parts.append("t" + "".join(map(str, self.transpose)))
        for flag in ("holes", "nested"):
            if getattr(self, flag):
                parts.append(flag)
        if self.endian == "big":
            parts.append("big")
        return "-".join(parts)

    def data(self) -> bytes:
        """The values, C order and little endian, every bit pattern possible."""
        rng = np.random.default_rng([self.seed, self.number])
        count = math.prod(self.shape)
        raw = rng.integers(0, 256, count * ITEM_BYTES[self.dtype], dtype=np.uint8)
        bits = ELEMENT_BITS.get(self.dtype)
        if bits is not None:
            raw &= (1 << bits) - 1
        if count and rng.random() < 0.3:  # runs compress; noise does not
            raw[: raw.size // 2 // ITEM_BYTES[self.dtype] * ITEM_BYTES[self.dtype]] = 0
        return raw.tobytes()

    def array(self) -> np.ndarray:
        """The values as NumPy sees them."""
        flat = np.frombuffer(self.data(), dtype=numpy_dtype(self.dtype))
        return flat.reshape(self.shape)


def numpy_dtype(name: str) -> np.dtype:
    """The little-endian NumPy type of a Zarr data type."""
    made = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
    return made.newbyteorder("<") if made.kind in "iufc" and made.itemsize > 1 else made


def raw_bytes(array: np.ndarray) -> bytes:
    """The values of an array as C order, little endian bytes."""
    array = np.asarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).tobytes()


def _shape(rng: random.Random, rank: int) -> tuple[int, ...]:
    while True:
        shape = tuple(rng.choice(SIZES) for _ in range(rank))
        if 0 in shape and rng.random() < 0.8:  # an empty array is one shape in many
            continue
        if math.prod(shape) <= ELEMENTS_MAX:
            return shape


def _chunk(rng: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A chunk shape that makes at most some hundred chunks; it may be larger than the array."""
    while True:
        chunk = tuple(max(1, rng.choice([n, n + 3, (n + 1) // 2, (n + 2) // 3, 4, 5, 8])) for n in shape)
        if math.prod(-(-n // c) for n, c in zip(shape, chunk)) <= 120:
            return chunk


def _times(rng: random.Random, chunk: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(c * rng.choice([1, 2, 2, 3]) for c in chunk)


def _permutation(rng: random.Random, rank: int) -> tuple[int, ...] | None:
    if rank < 2 or rng.random() < 0.7:
        return None
    return tuple(rng.sample(range(rank), rank))


def _walk(name: str, values: list, count: int, seed: int) -> list:
    """`count` values in random order, all of them before any twice: rare ones appear in a short run, too."""
    rng = random.Random(f"{seed}/{name}")
    out = []
    while len(out) < count:
        out += rng.sample(values, len(values))
    return out[:count]


def ours(count: int = COUNT, seed: int = SEED) -> list[Case]:
    """Cases that Milepost writes."""
    ranks = _walk("ours/rank", list(range(6)), count, seed)
    dtypes = _walk("ours/dtype", DTYPES + CORE, count, seed)
    codecs = _walk("ours/codec", CODECS + ["none"] * 8, count, seed)
    out = []
    for number in range(count):
        rng = random.Random(f"{seed}/ours/{number}")
        shape = _shape(rng, ranks[number])
        chunk = None if rng.random() < 0.15 else _chunk(rng, shape)
        shard = None
        if chunk and rng.random() < 0.5:  # a 0-d array is one chunk
            shard = _times(rng, chunk)
        out.append(
            Case(
                number=number,
                dtype=dtypes[number],
                shape=shape,
                chunk=chunk,
                shard=shard,
                codec=codecs[number],
                transpose=_permutation(rng, len(shape)),
                seed=seed,
            )
        )
    return out


def theirs(count: int = COUNT, seed: int = SEED) -> list[Case]:
    """Cases that others write: wider than what Milepost writes itself."""
    ranks = _walk("theirs/rank", list(range(6)), count, seed)
    dtypes = _walk("theirs/dtype", DTYPES + CORE, count, seed)
    codecs = _walk("theirs/codec", CODECS, count, seed)
    out = []
    for number in range(count):
        rng = random.Random(f"{seed}/theirs/{number}")
        dtype, shape = dtypes[number], _shape(rng, ranks[number])
        chunk = _chunk(rng, shape)
        shard = _times(rng, chunk) if shape and rng.random() < 0.5 else None
        nested = _times(rng, shard) if shard is not None and rng.random() < 0.3 else None
        out.append(
            Case(
                number=number,
                dtype=dtype,
                shape=shape,
                chunk=chunk,
                shard=shard,
                codec=codecs[number],
                transpose=_permutation(rng, len(shape)),
                endian=rng.choice(["little", "little", "big"]),
                separator=rng.choice(["/", "/", "."]),
                index_location=rng.choice(["end", "end", "start"]),
                index_crc=rng.random() < 0.8,
                chunk_crc=rng.random() < 0.4,
                nested=nested,
                fill=_fill(rng, dtype),
                holes=rng.random() < 0.3,
                seed=seed,
            )
        )
    return out


def _fill(rng: random.Random, dtype: str):
    """A fill value that every peer spells alike."""
    if dtype not in CORE or dtype.startswith(("bool", "complex")):
        return 0
    if dtype.startswith("float"):
        return rng.choice([0.0, 1.5, "NaN", "-Infinity"])
    return rng.choice([0, 1, 7])
