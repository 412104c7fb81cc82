//! ggml's block formats that no kernel reads: what a block's bytes mean, as f32.
//!
//! Layouts are those of `ggml-common.h`, meanings and names those of `dequantize_row_*` in `ggml-quants.c`, both of
//! llama.cpp. Products and sums are in the order of its Python package `gguf`, so that values are equal bit for bit.

mod blocks;
mod k;
#[cfg(test)]
mod tests;

use dsv3_kernels::f16_to_f32;

/// A block format that stage 1 turns into one that kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlBlocks {
    /// 4 bits and a scale for 32 columns.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 columns.
    Q4_1,
    /// 5 bits and a scale for 32 columns.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32 columns.
    Q5_1,
    /// 2 bits, scales and minima of 4 bits for 16 columns.
    Q2K,
    /// 3 bits, scales of 6 bits for 16 columns.
    Q3K,
    /// 5 bits, scales and minima of 6 bits for 32 columns.
    Q5K,
    /// 6 bits, scales of 8 bits for 16 columns.
    Q6K,
    /// One of 16 uneven steps, and a scale for 32 columns.
    Iq4Nl,
    /// One of 16 uneven steps, scales of 6 bits for 32 columns.
    Iq4Xs,
}

impl GgmlBlocks {
    /// Every format.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// Its number in `ggml.h`, and its name.
    const fn number_and_name(self) -> (u32, &'static str) {
        match self {
            Self::Q4_0 => (2, "q4_0"),
            Self::Q4_1 => (3, "q4_1"),
            Self::Q5_0 => (6, "q5_0"),
            Self::Q5_1 => (7, "q5_1"),
            Self::Q2K => (10, "q2_K"),
            Self::Q3K => (11, "q3_K"),
            Self::Q5K => (13, "q5_K"),
            Self::Q6K => (14, "q6_K"),
            Self::Iq4Nl => (20, "iq4_nl"),
            Self::Iq4Xs => (23, "iq4_xs"),
        }
    }

    /// The format of a number in `ggml.h`.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|blocks| blocks.number_and_name().0 == number)
    }

    /// Its name in `ggml.h`.
    pub const fn name(self) -> &'static str {
        self.number_and_name().1
    }

    /// Columns of a row that lie together.
    pub const fn block_cols(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Iq4Nl => blocks::COLS,
            Self::Q2K | Self::Q3K | Self::Q5K | Self::Q6K | Self::Iq4Xs => k::COLS,
        }
    }

    /// Bytes of such a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }

    /// The values of whole blocks. Any bytes are some: what scales that are no numbers give is none either.
    ///
    /// # Panics
    /// If `bytes` are no whole number of blocks, or `out` is not as long as their columns.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let count = bytes.len() / self.block_bytes();
        assert!(bytes.len().is_multiple_of(self.block_bytes()), "a row is stored in whole blocks");
        assert_eq!(out.len(), count * self.block_cols(), "values of {count} blocks of {}", self.name());
        match self {
            Self::Q4_0 => each(bytes, out, blocks::q4_0),
            Self::Q4_1 => each(bytes, out, blocks::q4_1),
            Self::Q5_0 => each(bytes, out, blocks::q5_0),
            Self::Q5_1 => each(bytes, out, blocks::q5_1),
            Self::Q2K => each(bytes, out, k::q2_k),
            Self::Q3K => each(bytes, out, k::q3_k),
            Self::Q5K => each(bytes, out, k::q5_k),
            Self::Q6K => each(bytes, out, k::q6_k),
            Self::Iq4Nl => each(bytes, out, blocks::iq4_nl),
            Self::Iq4Xs => each(bytes, out, k::iq4_xs),
        }
    }
}

/// Decodes block after block.
fn each<const BYTES: usize, const COLS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; COLS]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

/// The bytes of a block's field.
fn field<const BYTES: usize>(block: &[u8], at: usize) -> &[u8; BYTES] {
    block[at..].first_chunk().expect("a field lies within its block")
}

/// A field in half precision.
fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes(*field(block, at)))
}
