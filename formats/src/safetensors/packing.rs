//! Sub-byte elements: packed in safetensors, a byte each in Zarr.
//!
//! Element `i` takes the bits `i·b` to `(i+1)·b` of the little-endian bit stream: for F4 the first of two is the
//! low nibble, as torch's `float4_e2m1fn_x2` has it. F6 packs four in three bytes; no library writes F6 yet, so
//! the bit order is that of F4 carried on. Streams may be cut where [`super::Dtype::bytes`] of the piece is whole:
//! every 2 elements of F4, every 4 of F6.

use crate::{FormatError, Result};

/// Spreads packed elements of `bits` bits to a byte each, in the low bits.
///
/// # Errors
/// `Invalid` where the lengths do not fit or `bits` is not 1–7.
pub fn unpack(bits: u32, packed: &[u8], elements: &mut [u8]) -> Result<()> {
    check(bits, packed.len(), elements.len())?;
    let mask = (1_u32 << bits) - 1;
    let mut packed = packed.iter();
    let (mut window, mut held) = (0_u32, 0_u32);
    for element in elements {
        if held < bits {
            // The lengths fit, so there is a byte for every eight bits asked for.
            window |= u32::from(packed.next().copied().unwrap_or(0)) << held;
            held += 8;
        }
        *element = low_byte(window & mask);
        window >>= bits;
        held -= bits;
    }
    Ok(())
}

/// Packs the low `bits` bits of each element; the upper bits are ignored.
///
/// # Errors
/// `Invalid` where the lengths do not fit or `bits` is not 1–7.
pub fn pack(bits: u32, elements: &[u8], packed: &mut [u8]) -> Result<()> {
    check(bits, packed.len(), elements.len())?;
    let mask = (1_u32 << bits) - 1;
    let mut packed = packed.iter_mut();
    let (mut window, mut held) = (0_u32, 0_u32);
    for element in elements {
        window |= (u32::from(*element) & mask) << held;
        held += bits;
        if held >= 8 {
            if let Some(byte) = packed.next() {
                *byte = low_byte(window);
            }
            window >>= 8;
            held -= 8;
        }
    }
    Ok(())
}

fn low_byte(window: u32) -> u8 {
    let [byte, ..] = window.to_le_bytes();
    byte
}

fn check(bits: u32, packed: usize, elements: usize) -> Result<()> {
    let fits =
        (1..8).contains(&bits) && elements.checked_mul(bits as usize) == packed.checked_mul(8);
    if fits {
        return Ok(());
    }
    Err(FormatError::invalid(format!(
        "{elements} elements of {bits} bits do not fill {packed} bytes"
    )))
}
