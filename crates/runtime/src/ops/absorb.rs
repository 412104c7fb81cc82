//! The two halves of absorbed attention (DeepSeek-V2 paper, section 2.1.2): `kv_b_proj` goes into the queries before
//! they meet the latents, and into the outputs after.

use super::AttentionConfig;
use crate::{Device, Tensor, Weight};
use dsv3_kernels::{Cuts, Order, Parts, Queue};

/// Brings each head's query into the space of the latents: its key rows of `wkv_b`, applied from the left. The rotated
/// part stays as it is.
///
/// # Shapes
/// `queries` `[users, heads * (nope + rope)]`, `wkv_b` `[heads * (nope + v), kv_lora_rank]`; gives
/// `[users, heads * (kv_lora_rank + rope)]`.
pub fn absorb_queries(
    queries: &Tensor,
    wkv_b: &Weight,
    config: &AttentionConfig,
    order: Order,
    device: &Device,
) -> Tensor {
    let &AttentionConfig {
        heads, kv_lora_rank: rank, qk_nope_head_dim: nope, qk_rope_head_dim: rope, ..
    } = config;
    let (wkv_b, per_head) = (wkv_b.matrix(), nope + config.v_head_dim);
    let mut out = Tensor::anything(queries.rows(), heads * (rank + rope));
    let parts = Queue::new(Parts::new(out.as_mut(), Cuts::Whole, Cuts::Every(rank + rope)));
    device.for_each(&parts, |part| {
        let head = part.cols.start / (rank + rope);
        let (latent, mut rotated) = part.out.split_columns_at(rank);
        let keys = wkv_b.row_range(head * per_head..head * per_head + nope);
        let query = queries.columns(head * (nope + rope), nope);
        device.kernels().matmul_transposed_in(order, &keys, query, latent);
        for user in 0..queries.rows() {
            let query = &queries.row(user)[head * (nope + rope)..][..nope + rope];
            rotated.row_mut(user).copy_from_slice(&query[nope..]);
        }
    });
    out
}

/// Brings each head's weighted sum of latents back: its value rows of `wkv_b`.
///
/// # Shapes
/// `attended` `[users, heads * kv_lora_rank]`, `wkv_b` `[heads * (nope + v), kv_lora_rank]`; gives
/// `[users, heads * v]`.
pub fn expand_values(
    attended: &Tensor,
    wkv_b: &Weight,
    config: &AttentionConfig,
    order: Order,
    device: &Device,
) -> Tensor {
    let &AttentionConfig { heads, kv_lora_rank: rank, qk_nope_head_dim: nope, v_head_dim: v, .. } = config;
    let (wkv_b, per_head) = (wkv_b.matrix(), nope + v);
    let mut out = Tensor::anything(attended.rows(), heads * v);
    let parts = Queue::new(Parts::new(out.as_mut(), Cuts::Whole, Cuts::Every(v)));
    device.for_each(&parts, |part| {
        let head = part.cols.start / v;
        let values = wkv_b.row_range(head * per_head + nope..(head + 1) * per_head);
        device.kernels().matmul_in(order, &values, attended.columns(head * rank, rank), part.out);
    });
    out
}
