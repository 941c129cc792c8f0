//! Restored bytes, which Python reads through the buffer protocol without a copy.
#![expect(unsafe_code, reason = "the buffer protocol is pointers; see each SAFETY comment")]

use crate::errors::raise;
use milepost::Buffer;
use pyo3::{exceptions::PyBufferError, ffi, prelude::*};
use std::{
    cell::UnsafeCell,
    ffi::{c_int, c_void},
};

/// The elements of a restored leaf or of a box of it: little endian, C order.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Array {
    /// The data type's name.
    #[pyo3(get)]
    data_type: String,
    /// Elements an axis.
    #[pyo3(get)]
    shape: Vec<u64>,
    bytes: UnsafeCell<Buffer>,
}

// SAFETY: Rust never reads or writes the bytes once the array is made; Python's views share them as views of one
// NumPy array do.
unsafe impl Sync for Array {}

impl Array {
    pub(crate) fn new(data: milepost::ArrayData) -> Self {
        Self {
            data_type: data.data_type.to_string(),
            shape: data.shape,
            bytes: UnsafeCell::new(data.bytes),
        }
    }
}

#[pymethods]
impl Array {
    fn __len__(&self) -> usize {
        // SAFETY: nothing else of Rust refers to the buffer, and only its length is read.
        let bytes: &Buffer = unsafe { &*self.bytes.get() };
        bytes.len()
    }

    unsafe fn __getbuffer__(
        slf: PyRef<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        // SAFETY: nothing else of Rust refers to the buffer, whose memory does not move while the array lives.
        let bytes: &mut [u8] = unsafe { &mut *slf.bytes.get() };
        let len = isize::try_from(bytes.len()).map_err(|_| {
            raise(&milepost::Error::new(milepost::ErrorKind::Internal, "a buffer is too long"))
        })?;
        let start = bytes.as_mut_ptr().cast::<c_void>();
        // SAFETY: the view is the caller's, the memory lives as long as the object that the view keeps.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
