//! Chunks and parts of prompts.

use super::*;
use dsv3_galaxy::plan::{
    modules::mlp::product_rows,
    rules::chunks::{self, Chunks, PrefillChunkSizes, for_context},
};
use proptest::prelude::*;

#[test]
fn prefill_has_the_grids_and_chunks_of_upstream() {
    let plan = plan(&V3, request("4x8", Mode::Prefill, 1024)).unwrap();
    let mla = mla_prefill(&plan);
    let Some(ProgramConfig::MatmulMultiCoreReuseMultiCastProgramConfig(program)) =
        &mla.wq_kv_a.program_config
    else {
        panic!("of two dimensions")
    };
    let grid = program.compute_with_storage_grid_size;
    assert_eq!((grid.x, grid.y), (6, 6), "more cores hang some machines");
    let ProgramConfig::SDPAProgramConfig(flash) = &mla.flash_mla.program_config else {
        panic!("of attention")
    };
    assert_eq!((flash.q_chunk_size, flash.k_chunk_size), (128, 64));
    let sizes =
        |model_chunk, mla_chunk, wkv_b2_chunk| PrefillChunkSizes { model_chunk, mla_chunk, wkv_b2_chunk };
    const K: u32 = 1024;
    for (rows, context, expected) in [
        (4, 2048, sizes(2 * K, 2 * K, 2 * K)),
        (4, 32 * K, sizes(32 * K, 32 * K, 2 * K)),
        (8, 8 * K, sizes(8 * K, 8 * K, 2 * K)),
        (8, 16 * K, sizes(16 * K, K, K)),
        (8, 160 * K, sizes(K, 512, 512)),
        (16, 32 * K - 1, sizes(2 * K, 2 * K, 2 * K)),
        (16, 48 * K, sizes(48 * K, 48 * K, 4 * K)),
        (16, 64 * K, sizes(64 * K, 4 * K, 4 * K)),
        (16, 128 * K, sizes(K, 256, 256)),
    ] {
        assert_eq!(for_context(rows, context), expected, "{rows} rows, {context}");
    }
}

#[test]
fn only_one_user_on_each_device_is_prefilled_in_chunks() {
    let whole = plan(&V3, request("4x8", Mode::Prefill, 8192)).unwrap();
    let chunked = plan(&V3, Request { users_per_row: 8, ..request("4x8", Mode::Prefill, 8192) }).unwrap();
    assert_eq!(whole.document.header.chunk_sizes.unwrap().model_chunk, 8192);
    assert_eq!(chunked.document.header.chunk_sizes.unwrap().model_chunk, 2048);
    assert!(mla_prefill(&whole).later_chunks.is_none() && mla_prefill(&chunked).later_chunks.is_some());
    let later =
        |plan: &Plan| plan.operations.operations.iter().any(|one| one.op == "chunked_flash_mla_prefill");
    assert!(later(&chunked) && !later(&whole));
}

/// What upstream's demo does with a short prompt where long ones are served too.
#[test]
fn chunks_follow_the_longest_sequence_that_is_served() {
    const K: u32 = 1024;
    let chunks = |mesh, max_sequence_length| {
        let request =
            Request { users_per_row: 8, max_sequence_length, ..request(mesh, Mode::Prefill, 2 * K) };
        let plan = plan(&V3, request).unwrap();
        assert_eq!(mla_prefill(&plan).kv_cache.page_table_shape, [1, max_sequence_length / 32]);
        plan.document.header.chunk_sizes.unwrap()
    };
    let sizes =
        |model_chunk, mla_chunk, wkv_b2_chunk| PrefillChunkSizes { model_chunk, mla_chunk, wkv_b2_chunk };
    assert_eq!(chunks("8x8", 2 * K), sizes(2 * K, 2 * K, 2 * K));
    assert_eq!(chunks("8x8", 32 * K), sizes(K, 512, 512));
    assert_eq!(chunks("16x8", 128 * K), sizes(K, 256, 256));
    let shorter = Request { max_sequence_length: K, ..request("4x8", Mode::Prefill, 2 * K) };
    let error = plan(&V3, shorter).unwrap_err();
    assert!(matches!(error, PlanError::Request { option: "--max-sequence-length", .. }), "{error}");
}

/// 1952 tokens of a device are 61 tiles, a prime number: products fill up a tile, experts take a last part of 160.
#[test]
fn parts_of_odd_lengths_stay_large() {
    let whole = plan(&V3, request("4x8", Mode::Prefill, 7808)).unwrap();
    let config = &whole.document.model_config;
    assert_eq!(
        (config.mlp_decoder_block[0].mlp.max_rows, mla_prefill(&whole).chunk_sizes.wkv_b2_chunk),
        (992, 1952)
    );
    let shape = |name: &str| {
        let operation = whole.operations.operations.iter().find(|one| one.name == name);
        operation.unwrap_or_else(|| panic!("no {name}")).expect[0].shape.clone()
    };
    assert_eq!(shape("mlp_decoder_block.mlp.w1_pad"), [1, 1, 1984, 7168]);
    assert_eq!(shape("mlp_decoder_block.mlp.w1_unpad"), [1, 1, 1952, 2304]);
    assert_eq!(shape("moe_decoder_block.mlp.moe.slice"), [1, 1, 256, 7168]);
    assert_eq!(shape("moe_decoder_block.mlp.moe.rest.slice"), [1, 1, 160, 7168]);
    assert_eq!(shape("moe_decoder_block.mlp.moe.concat"), [1, 1, 1952, 7168]);
    // In chunks: filled up to four times 2048 where there is room, else a word of it.
    let chunked = |max_sequence_length| {
        let request =
            Request { users_per_row: 8, max_sequence_length, ..request("4x8", Mode::Prefill, 7808) };
        plan(&V3, request).unwrap().document.header
    };
    let filled = chunked(8192);
    assert_eq!((filled.chunk_sizes.unwrap().model_chunk, filled.padded_length), (2048, Some(8192)));
    assert_eq!(filled.chunk_sizes_reason, None);
    let tight = chunked(7808);
    assert_eq!((tight.chunk_sizes.unwrap().model_chunk, tight.padded_length), (128, Some(7808)));
    assert!(tight.chunk_sizes_reason.unwrap().contains("no room to fill them up"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Parts are at least half of what is wanted, or it is said why not; and they are where there is room to fill up.
    #[test]
    fn no_part_of_a_prompt_is_small(
        rows in prop_oneof![Just(4u32), Just(8), Just(16), 2u32..17],
        (steps, room, is_chunked) in (1u32..400, 0u32..9000, any::<bool>()),
    ) {
        let sequence_length = steps * 32 * rows;
        let max_sequence_length = sequence_length + room * 32;
        let request = Request {
            mesh: format!("{rows}x8").parse().unwrap(),
            mode: Mode::Prefill,
            users_per_row: if is_chunked { 8 } else { 32 },
            sequence_length,
            max_sequence_length,
            fabric: Fabric::Line,
        };
        let Chunks { sizes, padded_length, reason } = chunks::of(&request);
        let wanted = for_context(rows, max_sequence_length);
        prop_assert!(padded_length >= sequence_length && padded_length <= max_sequence_length);
        prop_assert!(padded_length.is_multiple_of(sizes.model_chunk) && sizes.model_chunk.is_multiple_of(32 * rows));
        prop_assert!(sizes.model_chunk.is_multiple_of(sizes.mla_chunk));
        prop_assert!(2 * sizes.wkv_b2_chunk >= wanted.wkv_b2_chunk.min(sizes.mla_chunk));
        if !is_chunked {
            prop_assert_eq!((sizes.model_chunk, sizes.mla_chunk), (sequence_length, sequence_length));
        } else if reason.is_none() {
            prop_assert!(sizes.model_chunk <= wanted.model_chunk && sizes.mla_chunk <= wanted.mla_chunk);
            prop_assert!(2 * sizes.model_chunk >= wanted.model_chunk.min(sequence_length));
            prop_assert!(2 * sizes.mla_chunk >= wanted.mla_chunk.min(sizes.model_chunk));
        } else {
            let whole = sequence_length.next_multiple_of(wanted.model_chunk / (32 * rows) * 32 * rows);
            prop_assert!(whole > max_sequence_length, "there was room for {}", whole);
        }
        let tokens = sizes.model_chunk / rows;
        prop_assert!(2 * product_rows(tokens) >= tokens.min(1024));
        prop_assert!(product_rows(tokens) * tokens.div_ceil(product_rows(tokens)) < tokens + 32 * tokens.div_ceil(1024).max(1));
    }
}
