"""Data types that stock zarr-python lacks: bfloat16, float8, float6, float4, the narrow integers and ``r*``.

Installed with Milepost, zarr-python finds them by their entry points, and ``zarr.open(step)`` reads every leaf.
zarr-python (3.1.6 and its main branch of 2026-08) collects the group ``zarr.data_type`` and never loads it, so the
package also has an entry point in ``zarr.buffer``, which zarr-python loads before it reads a group. It names
zarr-python's own buffer; that this module is imported on the way is the point. An array that is opened by its own
path before any group is too early for that: ``import milepost.zarr_dtypes`` first.

Elements are those of ``ml_dtypes``, one a byte where the type is narrower than one. Fill values are read and
written as in Milepost's format: numbers to the nearest value of the type and never out of its range, ``"NaN"``,
``"Infinity"``, and all bits in hexadecimal (``"0x7fc1"``) for every other code.

**Invariant:** nothing here needs Milepost's engine. Only Zarr v3: v2 has no names for these types.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import ml_dtypes
import numpy as np
from zarr.core.buffer.cpu import Buffer
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.dtype import DataTypeValidationError, ZDType, data_type_registry

__all__ = ["DATA_TYPES", "Buffer", "register"]


class _Named(ZDType[Any, Any], HasItemSize):
    """A Zarr v3 data type whose name alone says what it is."""

    _scalar: ClassVar[type[np.generic]]

    def __init_subclass__(cls, scalar: type[np.generic] | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if scalar is not None:
            cls._scalar = scalar
            cls.dtype_cls = type(np.dtype(scalar))
            cls._zarr_v3_name = np.dtype(scalar).name

    @property
    def item_size(self) -> int:
        """Bytes an element takes."""
        return np.dtype(self._scalar).itemsize

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype[Any]) -> Self:
        """Takes the NumPy data type of ``ml_dtypes``; raises DataTypeValidationError for any other."""
        if cls._check_native_dtype(dtype):
            return cls()
        raise DataTypeValidationError(f"{dtype} is not {cls._zarr_v3_name}")

    def to_native_dtype(self) -> np.dtype[Any]:
        """Returns the NumPy data type of ``ml_dtypes``."""
        return np.dtype(self._scalar)

    @classmethod
    def _from_json_v2(cls, data: object) -> Self:
        raise DataTypeValidationError(f"Zarr v2 has no {cls._zarr_v3_name}. Got {data!r}")

    @classmethod
    def _from_json_v3(cls, data: object) -> Self:
        if data in (cls._zarr_v3_name, {"name": cls._zarr_v3_name, "configuration": {}}):
            return cls()
        raise DataTypeValidationError(f"{data!r} is not {cls._zarr_v3_name!r}")

    def to_json(self, zarr_format: int) -> Any:
        """Returns the name; Zarr v2 has none and is refused with ValueError."""
        if zarr_format != 3:
            raise ValueError(f"Zarr v2 has no {self._zarr_v3_name}; use zarr_format=3")
        return self._zarr_v3_name

    def default_scalar(self) -> Any:
        """Returns the element of zero bits, which is 0 but for float8_e8m0fnu."""
        return self._of_code(0)

    def _check_scalar(self, data: object) -> bool:
        try:
            self.cast_scalar(data)
        except (TypeError, ValueError):
            return False
        return True

    def _of_code(self, code: int) -> Any:
        raw = np.array(code, dtype=f"u{self.item_size}")
        return raw.view(np.dtype(self._scalar))[()]

    def _refused(self, data: object, why: str) -> str:
        return f"{data!r} is not a value of {self._zarr_v3_name}: {why}"


class _Float(_Named):
    """A binary float; its special codes are found by asking ``ml_dtypes``."""

    @property
    def _codes(self) -> int:
        return 1 << ml_dtypes.finfo(self._scalar).bits

    def _of_number(self, number: float) -> Any:
        value = self._scalar(number)
        stored = float(value)
        if math.isnan(number):
            if not math.isnan(stored):
                raise ValueError(self._refused(number, "the type has no NaN"))
        elif math.isinf(number):
            if stored != number:
                raise ValueError(self._refused(number, "the type has no such infinity"))
        elif not math.isfinite(stored) or self._saturates(abs(number)):
            raise ValueError(self._refused(number, "out of range"))
        return value

    def _saturates(self, magnitude: float) -> bool:
        """Tells whether a type without NaN cuts off what would round beyond its largest value."""
        if math.isnan(float(self._scalar(math.nan))):
            return False
        largest = self._codes // 2 - 1
        step = float(self._of_code(largest)) - float(self._of_code(largest - 1))
        return magnitude >= float(self._of_code(largest)) + step / 2

    def cast_scalar(self, data: object) -> Any:
        """Takes a real number, or the text of one; ValueError where it is out of the type's range."""
        if isinstance(data, self._scalar):
            return data
        if isinstance(data, str):
            return self.from_json_scalar(data, zarr_format=3)
        if isinstance(data, (bool, np.bool_)) or not isinstance(data, (int, float, np.generic)):
            raise TypeError(self._refused(data, "a real number is expected"))
        return self._of_number(float(data))

    def from_json_scalar(self, data: object, *, zarr_format: int) -> Any:
        """Reads a fill value: a number, ``"NaN"``, ``"±Infinity"`` or all bits in hexadecimal."""
        special = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
        if isinstance(data, str):
            if data in special:
                return self._of_number(special[data])
            if not re.fullmatch(f"0x[0-9a-fA-F]{{{2 * self.item_size}}}", data):
                raise ValueError(self._refused(data, "a number, NaN, Infinity or 0x… is expected"))
            code = int(data, 16)
            if code >= self._codes:
                raise ValueError(self._refused(data, "it has bits that the type lacks"))
            return self._of_code(code)
        if isinstance(data, bool) or not isinstance(data, (int, float)):
            raise TypeError(self._refused(data, "a number or a string is expected"))
        return self._of_number(float(data))

    def to_json_scalar(self, data: object, *, zarr_format: int) -> float | str:
        """Writes a fill value as Milepost does: hexadecimal where neither number nor ``"NaN"`` says it."""
        value = self.cast_scalar(data)
        number = float(value)
        if math.isinf(number):
            return "Infinity" if number > 0 else "-Infinity"
        if math.isfinite(number):
            return number
        code = self._code(value)
        return "NaN" if code == self._nan_code else self._hex(code)

    @property
    def _nan_code(self) -> int:
        """The NaN that `"NaN"` stands for: the quiet one without a sign, where the type has several."""
        unsigned = self._code(self._scalar(math.nan)) & (self._codes // 2 - 1)
        return unsigned if math.isnan(float(self._of_code(unsigned))) else self._codes // 2

    def _code(self, value: Any) -> int:
        return int(np.asarray(value, dtype=self._scalar).view(f"u{self.item_size}"))

    def _hex(self, code: int) -> str:
        return f"0x{code:0{2 * self.item_size}x}"


class _Integer(_Named):
    """An integer narrower than a byte, which takes one."""

    def cast_scalar(self, data: object) -> Any:
        """Takes an integer of the type's range; TypeError or ValueError otherwise."""
        if isinstance(data, self._scalar):
            return data
        if isinstance(data, (bool, np.bool_)) or not isinstance(data, (int, np.integer)):
            raise TypeError(self._refused(data, "an integer is expected"))
        limits = ml_dtypes.iinfo(self._scalar)
        if not int(limits.min) <= int(data) <= int(limits.max):
            raise ValueError(self._refused(data, "out of range"))
        return self._scalar(int(data))

    def from_json_scalar(self, data: object, *, zarr_format: int) -> Any:
        """Reads a fill value, a JSON integer."""
        return self.cast_scalar(data)

    def to_json_scalar(self, data: object, *, zarr_format: int) -> int:
        """Writes a fill value as a JSON integer."""
        return int(self.cast_scalar(data))


@dataclass(frozen=True, kw_only=True)
class BFloat16(_Float, HasEndianness, scalar=ml_dtypes.bfloat16):
    """bfloat16; little-endian alone, as NumPy knows no other order of it."""

    def __post_init__(self) -> None:
        if self.endianness != sys.byteorder:
            raise ValueError(f"NumPy has no {self.endianness}-endian bfloat16 on this machine")


class Float8E3M4(_Float, scalar=ml_dtypes.float8_e3m4):
    """float8_e3m4: with infinities."""


class Float8E4M3(_Float, scalar=ml_dtypes.float8_e4m3):
    """float8_e4m3: with infinities."""


class Float8E4M3B11FNUZ(_Float, scalar=ml_dtypes.float8_e4m3b11fnuz):
    """float8_e4m3b11fnuz: one NaN, no infinity, no negative zero."""


class Float8E4M3FN(_Float, scalar=ml_dtypes.float8_e4m3fn):
    """float8_e4m3fn: NaN, no infinity."""


class Float8E4M3FNUZ(_Float, scalar=ml_dtypes.float8_e4m3fnuz):
    """float8_e4m3fnuz: one NaN, no infinity, no negative zero."""


class Float8E5M2(_Float, scalar=ml_dtypes.float8_e5m2):
    """float8_e5m2: with infinities."""


class Float8E5M2FNUZ(_Float, scalar=ml_dtypes.float8_e5m2fnuz):
    """float8_e5m2fnuz: one NaN, no infinity, no negative zero."""


class Float8E8M0FNU(_Float, scalar=ml_dtypes.float8_e8m0fnu):
    """float8_e8m0fnu: powers of two from 2^-127, and a NaN."""

    def _of_number(self, number: float) -> Any:
        # TensorStore writes 0.0 for the code 0, whose value is 2^-127.
        if number == 0:
            return self._of_code(0)
        value = super()._of_number(number)
        if float(value) != number and not math.isnan(number):
            raise ValueError(self._refused(number, "not a power of two"))
        return value

    @property
    def _nan_code(self) -> int:
        return 0xFF

    def to_json_scalar(self, data: object, *, zarr_format: int) -> float | str:
        """Writes ``"NaN"`` or the code: TensorStore 0.1.86 reads a number wrong here."""
        code = self._code(self.cast_scalar(data))
        return "NaN" if code == self._nan_code else self._hex(code)


class Float6E2M3FN(_Float, scalar=ml_dtypes.float6_e2m3fn):
    """float6_e2m3fn: every code is a number."""


class Float6E3M2FN(_Float, scalar=ml_dtypes.float6_e3m2fn):
    """float6_e3m2fn: every code is a number."""


class Float4E2M1FN(_Float, scalar=ml_dtypes.float4_e2m1fn):
    """float4_e2m1fn: every code is a number."""


class Int2(_Integer, scalar=ml_dtypes.int2):
    """int2: -2 to 1."""


class Int4(_Integer, scalar=ml_dtypes.int4):
    """int4: -8 to 7."""


class UInt2(_Integer, scalar=ml_dtypes.uint2):
    """uint2: 0 to 3."""


class UInt4(_Integer, scalar=ml_dtypes.uint4):
    """uint4: 0 to 15."""


@dataclass(frozen=True, kw_only=True)
class Raw(ZDType[Any, Any], HasItemSize):
    """``r<bits>``: opaque bytes of a fixed size, NumPy's void.

    New arrays of void keep zarr-python's own name for them: `from_native_dtype` matches nothing.
    """

    dtype_cls = np.dtypes.VoidDType
    _zarr_v3_name: ClassVar[str] = "r*"
    size: int = 1

    @property
    def item_size(self) -> int:
        """Bytes an element takes."""
        return self.size

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype[Any]) -> Self:
        """Raises DataTypeValidationError for every data type."""
        raise DataTypeValidationError(f"{dtype} is zarr-python's raw_bytes")

    def to_native_dtype(self) -> np.dtype[Any]:
        """Returns ``V<size>``."""
        return np.dtype(f"V{self.size}")

    @classmethod
    def _from_json_v2(cls, data: object) -> Self:
        raise DataTypeValidationError(f"{data!r} is not r<bits>")

    @classmethod
    def _from_json_v3(cls, data: object) -> Self:
        match = re.fullmatch(r"r([1-9][0-9]{0,5})", data) if isinstance(data, str) else None
        if match is None or int(match[1]) % 8 or int(match[1]) > 8 * 65_536:
            raise DataTypeValidationError(f"{data!r} is not r<bits> of whole bytes")
        return cls(size=int(match[1]) // 8)

    def to_json(self, zarr_format: int) -> Any:
        """Returns ``r<bits>``."""
        if zarr_format != 3:
            raise ValueError("Zarr v2 has no r<bits>; use zarr_format=3")
        return f"r{8 * self.size}"

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (bytes, np.void)) and len(bytes(data)) == self.size

    def cast_scalar(self, data: object) -> np.void:
        """Takes bytes or a void of the type's size; TypeError otherwise."""
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is not {self.size} bytes")
        return np.void(bytes(data))  # type: ignore[call-overload]

    def default_scalar(self) -> np.void:
        """Returns zeros."""
        return np.void(bytes(self.size))

    def from_json_scalar(self, data: object, *, zarr_format: int) -> np.void:
        """Reads a fill value, a list of as many numbers as bytes."""
        if not (
            isinstance(data, (list, tuple))
            and len(data) == self.size
            and all(type(byte) is int and 0 <= byte <= 255 for byte in data)
        ):
            raise ValueError(f"{data!r} is not a list of {self.size} bytes")
        return np.void(bytes(data))

    def to_json_scalar(self, data: object, *, zarr_format: int) -> list[int]:
        """Writes a fill value as a list of its bytes."""
        return list(bytes(self.cast_scalar(data)))


#: Every class that `register` makes known, in the order of the format's specification.
DATA_TYPES: tuple[type[ZDType[Any, Any]], ...] = (
    *(Int2, Int4, UInt2, UInt4, Float4E2M1FN, Float6E2M3FN, Float6E3M2FN),
    *(Float8E3M4, Float8E4M3, Float8E4M3B11FNUZ, Float8E4M3FN, Float8E4M3FNUZ),
    *(Float8E5M2, Float8E5M2FNUZ, Float8E8M0FNU, BFloat16, Raw),
)


def register() -> None:
    """Makes the data types known to zarr-python, but for names that somebody registered before.

    Importing this module does it.
    """
    for data_type in DATA_TYPES:
        if data_type._zarr_v3_name not in data_type_registry.contents:
            data_type_registry.register(data_type._zarr_v3_name, data_type)


register()
