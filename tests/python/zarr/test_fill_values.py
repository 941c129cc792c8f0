"""Fill values of the data types, against the vectors of the format's specification."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from milepost import zarr_dtypes

VECTORS = Path(__file__).resolve().parents[3] / "spec" / "vectors" / "fill_values.json"
BY_NAME = {c._zarr_v3_name: c for c in zarr_dtypes.DATA_TYPES if c is not zarr_dtypes.Raw}
FLOATS = [c for c in BY_NAME.values() if issubclass(c, zarr_dtypes._Float)]
INTEGERS = [c for c in BY_NAME.values() if issubclass(c, zarr_dtypes._Integer)]


def data_type(name: str):
    """The data type of a vector, or None where zarr-python has it itself."""
    if name in BY_NAME:
        return BY_NAME[name]()
    return zarr_dtypes.Raw._from_json_v3(name) if name[0] == "r" else None


def vectors():
    for number, vector in enumerate(json.loads(VECTORS.read_text())):
        if data_type(vector["data_type"]):
            yield pytest.param(vector, id=f"{number}-{vector['data_type']}")


@pytest.mark.parametrize("vector", list(vectors()))
def test_fill_values_are_those_of_the_specification(vector):
    kind = data_type(vector["data_type"])
    if vector["element"] is None:
        with pytest.raises((ValueError, TypeError)):
            kind.from_json_scalar(vector["fill_value"], zarr_format=3)
        return
    value = kind.from_json_scalar(vector["fill_value"], zarr_format=3)
    if isinstance(kind, zarr_dtypes._Integer):
        # The bits above a narrow integer's own are nobody's: ml_dtypes leaves them 0.
        assert int(value) == vector["fill_value"]
    else:
        assert np.asarray(value).tobytes().hex() == vector["element"]
    assert kind.to_json_scalar(value, zarr_format=3) == vector["canonical"]


@pytest.mark.parametrize("cls", FLOATS, ids=lambda c: c._zarr_v3_name)
def test_every_code_of_a_float_survives_json(cls):
    kind = cls()
    for code in range(kind._codes):
        text = json.dumps(kind.to_json_scalar(kind._of_code(code), zarr_format=3))
        assert kind._code(kind.from_json_scalar(json.loads(text), zarr_format=3)) == code, text


@pytest.mark.parametrize("cls", INTEGERS, ids=lambda c: c._zarr_v3_name)
def test_every_value_of_an_integer_survives_json_and_its_neighbours_are_refused(cls):
    kind = cls()
    limits = ml_dtypes.iinfo(kind.to_native_dtype())
    for number in range(int(limits.min), int(limits.max) + 1):
        assert kind.to_json_scalar(kind.from_json_scalar(number, zarr_format=3), zarr_format=3) == number
    for number in (int(limits.min) - 1, int(limits.max) + 1):
        with pytest.raises(ValueError, match="out of range"):
            kind.cast_scalar(number)
    for wrong in (True, 1.0, "1", None):
        with pytest.raises(TypeError):
            kind.from_json_scalar(wrong, zarr_format=3)


@pytest.mark.parametrize("cls", FLOATS, ids=lambda c: c._zarr_v3_name)
@pytest.mark.parametrize("wrong", ["nan", "0x", "0x1", "0x123456", "1.5", "", None, [1], True])
def test_what_is_no_fill_value_of_a_float_is_refused(cls, wrong):
    with pytest.raises((ValueError, TypeError)):
        cls().from_json_scalar(wrong, zarr_format=3)


@pytest.mark.parametrize("cls", FLOATS, ids=lambda c: c._zarr_v3_name)
def test_a_number_out_of_range_is_refused_and_the_largest_is_not(cls):
    kind = cls()
    finite = [float(kind._of_code(code)) for code in range(kind._codes)]
    largest = max(number for number in finite if math.isfinite(number))
    assert float(kind.cast_scalar(largest)) == largest
    for number in (2 * largest, -2 * largest, 1e300):
        with pytest.raises(ValueError):
            kind.cast_scalar(number)


def test_a_type_without_nan_or_infinity_refuses_them():
    with pytest.raises(ValueError, match="no NaN"):
        zarr_dtypes.Float4E2M1FN().from_json_scalar("NaN", zarr_format=3)
    with pytest.raises(ValueError, match="no such infinity"):
        zarr_dtypes.Float8E4M3FN().from_json_scalar("Infinity", zarr_format=3)


def test_bits_beyond_a_narrow_float_are_refused():
    assert float(zarr_dtypes.Float4E2M1FN().from_json_scalar("0x0f", zarr_format=3)) == -6
    with pytest.raises(ValueError, match="bits that the type lacks"):
        zarr_dtypes.Float4E2M1FN().from_json_scalar("0x10", zarr_format=3)


def test_float8_e8m0fnu_takes_powers_of_two_and_the_zero_of_tensorstore():
    kind = zarr_dtypes.Float8E8M0FNU()
    assert kind._code(kind.from_json_scalar(0.0, zarr_format=3)) == 0
    assert kind.to_json_scalar(4.0, zarr_format=3) == "0x81"
    for wrong in (3.0, -1.0, 1.5):
        with pytest.raises(ValueError):
            kind.from_json_scalar(wrong, zarr_format=3)


@pytest.mark.parametrize("cls", zarr_dtypes.DATA_TYPES, ids=lambda c: c.__name__)
def test_data_types_are_values(cls):
    kind = cls()
    assert kind == cls() and hash(kind) == hash(cls())
    assert pickle.loads(pickle.dumps(kind)) == kind
    assert kind.item_size == kind.to_native_dtype().itemsize
    assert cls.from_json(kind.to_json(zarr_format=3), zarr_format=3) == kind
    assert kind._check_scalar(kind.default_scalar())
    with pytest.raises(ValueError, match="v2"):
        kind.to_json(zarr_format=2)


def test_raw_bytes_of_a_wrong_size_are_refused():
    for name in ("r", "r0", "r7", "r08", "r8.0", "r524296", "raw"):
        with pytest.raises(ValueError):
            zarr_dtypes.Raw.from_json(name, zarr_format=3)
    with pytest.raises(TypeError):
        zarr_dtypes.Raw(size=3).cast_scalar(b"12")


def test_big_endian_bfloat16_is_refused_rather_than_misread():
    with pytest.raises(ValueError, match="big-endian"):
        zarr_dtypes.BFloat16(endianness="big")
