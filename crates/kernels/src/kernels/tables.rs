//! The tables.

use super::Kernels;
use crate::Isa;
use crate::{
    activation, attention, block_float, ceiling, dequantize, elementwise, lanes, matmul, matmul_integer,
    matmul_transposed, quantize, reduce, rope, to_integers,
};

pub(super) static SCALAR: Kernels = Kernels {
    isa: Isa::Scalar,
    matmul: matmul::scalar::matmul,
    few: matmul_integer::FEW,
    quantize: to_integers::scalar::quantize,
    matmul_integer: matmul_integer::scalar::matmul_integer,
    matmul_transposed: matmul_transposed::scalar::matmul_transposed,
    dequantize: dequantize::scalar::dequantize,
    quantize_row: quantize::scalar::quantize_row,
    pack_block_floats: block_float::scalar::pack_block_floats,
    sum_of_squares: reduce::scalar::sum_of_squares,
    scale_mul: elementwise::scalar::scale_mul,
    add: elementwise::scalar::add,
    add_scaled: elementwise::scalar::add_scaled,
    silu_mul: activation::scalar::silu_mul,
    sigmoid: activation::scalar::sigmoid,
    rope_interleaved: rope::scalar::rope_interleaved,
    xor_words: ceiling::scalar::xor_words,
    fma_rounds: ceiling::scalar::fma_rounds,
    int8_rounds: ceiling::scalar::int8_rounds,
    pack_lanes: lanes::scalar::pack_lanes,
    matmul_lanes: lanes::scalar::matmul_lanes,
    attend: attention::scalar::attend,
    merge_attention: attention::scalar::merge_attention,
    finish_attention: attention::scalar::finish_attention,
};

#[cfg(target_arch = "x86_64")]
pub(super) static AVX2: Kernels = Kernels {
    isa: Isa::Avx2,
    matmul: matmul::avx2::matmul,
    few: matmul_integer::FEW,
    quantize: to_integers::avx2::quantize,
    matmul_integer: matmul_integer::avx2::matmul_integer,
    matmul_transposed: matmul_transposed::avx2::matmul_transposed,
    dequantize: dequantize::avx2::dequantize,
    quantize_row: quantize::avx2::quantize_row,
    pack_block_floats: block_float::avx2::pack_block_floats,
    sum_of_squares: reduce::avx2::sum_of_squares,
    scale_mul: elementwise::avx2::scale_mul,
    add: elementwise::avx2::add,
    add_scaled: elementwise::avx2::add_scaled,
    silu_mul: activation::avx2::silu_mul,
    sigmoid: activation::avx2::sigmoid,
    rope_interleaved: rope::avx2::rope_interleaved,
    xor_words: ceiling::avx2::xor_words,
    fma_rounds: ceiling::avx2::fma_rounds,
    int8_rounds: ceiling::avx2::int8_rounds,
    pack_lanes: lanes::avx2::pack_lanes,
    matmul_lanes: lanes::avx2::matmul_lanes,
    attend: attention::avx2::attend,
    merge_attention: attention::avx2::merge_attention,
    finish_attention: attention::avx2::finish_attention,
};

#[cfg(target_arch = "x86_64")]
pub(super) static AVX2_HALVES: Kernels = Kernels {
    isa: Isa::Avx2Halves,
    few: matmul_integer::avx2::halves::FEW,
    matmul_integer: matmul_integer::avx2::halves::matmul_integer,
    ..AVX2
};

#[cfg(target_arch = "x86_64")]
pub(super) static AVX512: Kernels = Kernels {
    isa: Isa::Avx512,
    matmul: matmul::avx512::matmul,
    few: matmul_integer::avx512::FEW,
    matmul_integer: matmul_integer::avx512::matmul_integer,
    matmul_transposed: matmul_transposed::avx512::matmul_transposed,
    dequantize: dequantize::avx512::dequantize,
    fma_rounds: ceiling::avx512::fma_rounds,
    int8_rounds: ceiling::avx512::int8_rounds,
    matmul_lanes: lanes::avx512::matmul_lanes,
    attend: attention::avx512::attend,
    ..AVX2
};
