//! Which form of attention a chunk of a prompt takes, by what each would cost.
//!
//! In multiply-adds: `cargo bench -p dsv3-runtime --bench attention` measures both forms at the same speed where a bf16 cache
//! is read in place (on an AMD Zen 2 84 G/s absorbed, 86 expanded, with two threads), but for what has constants below.

use super::AttentionConfig;
use crate::ops::CacheFormat;

/// Multiply-adds a second of absorbed attention to a cache in another format, relative to all others: each token brings the
/// latents into f32 for itself.
const ABSORBED_SPEED: f64 = 0.82;
/// Multiply-adds a second of the products that turn queries and outputs, relative to all others: they unpack `wkv_b` for
/// few tokens.
const TURNING_SPEED: f64 = 0.5;
/// What unpacking an element of `wkv_b` for the expansion costs, in multiply-adds: a chunk does it once for each head.
const UNPACKING: usize = 12;

/// The two forms of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillForm {
    /// Queries go into the space of the latents, outputs come back: nothing to do for cached positions, much for each
    /// pair of a token and a position.
    Absorbed,
    /// Latents become keys and values: much to do for each cached position, little for each pair.
    Expanded,
}

/// The cheaper form for a chunk of `tokens` tokens that starts at position `start`, against a cache of that format.
pub fn prefill_form(
    tokens: usize,
    start: usize,
    cache: CacheFormat,
    config: &AttentionConfig,
) -> PrefillForm {
    let speed = if cache == CacheFormat::Bf16 { 1.0 } else { ABSORBED_SPEED };
    if absorbed_cost(tokens, start, speed, config) < expanded_cost(tokens, start, config) {
        PrefillForm::Absorbed
    } else {
        PrefillForm::Expanded
    }
}

/// Multiply-adds of a head, those that turn weighed by their speed.
fn absorbed_cost(tokens: usize, start: usize, speed: f64, config: &AttentionConfig) -> f64 {
    let turning = tokens * config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim);
    let pair = 2 * config.kv_lora_rank + config.qk_rope_head_dim;
    turning as f64 / TURNING_SPEED + pairs(tokens, start) * pair as f64 / speed
}

/// Multiply-adds of a head.
fn expanded_cost(tokens: usize, start: usize, config: &AttentionConfig) -> f64 {
    let expanded = config.qk_nope_head_dim + config.v_head_dim;
    let expanding = (start + tokens + UNPACKING) as f64 * (config.kv_lora_rank * expanded) as f64;
    let pair = expanded + config.qk_rope_head_dim;
    expanding + pairs(tokens, start) * pair as f64
}

/// Pairs of a token and a position that it sees.
fn pairs(tokens: usize, start: usize) -> f64 {
    let (tokens, start) = (tokens as f64, start as f64);
    tokens * start + tokens * (tokens + 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DeepSeek-V3's head sizes.
    const CONFIG: AttentionConfig = AttentionConfig {
        heads: 16,
        kv_lora_rank: 512,
        qk_nope_head_dim: 128,
        qk_rope_head_dim: 64,
        v_head_dim: 128,
        scale: 1.0,
    };

    #[test]
    fn few_tokens_at_depth_are_absorbed_and_many_expanded() {
        use PrefillForm::{Absorbed, Expanded};
        let cases = [
            (1, 1, Absorbed),
            (1, 4096, Absorbed),
            (4, 512, Absorbed),
            (64, 4096, Absorbed),
            (100, 4096, Absorbed),
            (150, 4096, Absorbed),
            (176, 4096, Expanded),
            (512, 4096, Expanded),
            (512, 0, Expanded),
            (64, 0, Expanded),
        ];
        for (tokens, start, form) in cases {
            let got = prefill_form(tokens, start, CacheFormat::Bf16, &CONFIG);
            assert_eq!(got, form, "{tokens} tokens at {start}");
        }
        for format in [CacheFormat::F32, CacheFormat::Q8] {
            assert_eq!(prefill_form(120, 4096, format, &CONFIG), Absorbed, "{format}");
            assert_eq!(prefill_form(150, 4096, format, &CONFIG), Expanded, "{format}");
        }
    }

    #[test]
    fn more_tokens_never_turn_a_chunk_back_to_absorbed() {
        for start in [1, 100, 1000, 100_000] {
            let forms = (1..1024).map(|tokens| prefill_form(tokens, start, CacheFormat::Bf16, &CONFIG));
            let absorbed = forms.clone().take_while(|form| *form == PrefillForm::Absorbed).count();
            assert!(
                forms.skip(absorbed).all(|form| form == PrefillForm::Expanded),
                "from {absorbed} at {start}"
            );
        }
    }
}
