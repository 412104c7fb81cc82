//! A decode step allocates nothing, on no thread: what it needs, the steps before gave back. A binary of its own, for it
//! counts what the whole process allocates.

mod support;

use dsv3_deepseek::{HfConfig, Model, ModelConfig, ModelState, Mtp, MtpInput};
use dsv3_mesh::Layout;
use dsv3_runtime::{
    Capacity, DecodeStep, Module, PageId, Prefix, Run, TokenId,
    ops::{Arithmetic, CacheFormat},
};
use std::{array, ops::Range};
use support::{CASES, stages::Stages};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const PAGE_SIZE: usize = 16;
/// Tokens that a user may have: attention makes another segment of a context at each multiple of 128, up to eight.
const CONTEXT: usize = 1100;
const PAGES: usize = CONTEXT.div_ceil(PAGE_SIZE);
/// Positions of the first steps, which may allocate.
const FIRST: Range<usize> = 5..25;

/// Allocations of the process so far, and their bytes.
fn allocated() -> (u64, u64) {
    let stats = dhat::HeapStats::get();
    (stats.total_blocks, stats.total_bytes)
}

/// Steps of `USERS` users, of which user `n` is `n * PAGE_SIZE` positions behind; gives what they allocated.
fn allocated_by_steps<const USERS: usize>(
    stages: &Stages<Model>,
    config: &ModelConfig,
    state: &mut ModelState,
    positions: impl Iterator<Item = usize>,
) -> (u64, u64) {
    let pages: [[PageId; PAGES]; USERS] =
        array::from_fn(|user| array::from_fn(|page| PageId((user * PAGES + page) as u32)));
    let pages = pages.each_ref().map(|pages| &pages[..]);
    let before = allocated();
    for first in positions {
        let positions: [usize; USERS] = array::from_fn(|user| first.saturating_sub(user * PAGE_SIZE));
        let tokens: [TokenId; USERS] =
            array::from_fn(|user| TokenId((first * 37 + user * 101) as u32 % 1000));
        let step = DecodeStep::new(&positions, &pages);
        let (w, device) = (stages.run.weights(), stages.run.device());
        let output = Model::forward_decode(&tokens, &step, Run { cfg: config, w, state, device }).unwrap();
        let mtp =
            Model::mtp_decode(Run { cfg: config, w, state, device }).expect("the model has an MTP layer");
        Mtp::forward_decode(MtpInput { tokens: &tokens, hidden: &output.hidden }, &step, mtp).unwrap();
    }
    let after = allocated();
    (after.0 - before.0, after.1 - before.1)
}

fn check<const USERS: usize>(
    stages: &Stages<Model>,
    hf: &HfConfig,
    cache: CacheFormat,
    arithmetic: Arithmetic,
) {
    let capacity = Capacity { max_context: CONTEXT, page_size: PAGE_SIZE, pages: USERS * PAGES };
    let mut state = ModelState::new(hf, Layout::SINGLE, &capacity, cache).unwrap();
    let config = Model::decode_model_config(hf, Layout::SINGLE).unwrap();
    let config = serde_json::to_string(&config).unwrap();
    let arithmetic_json = serde_json::to_string(&arithmetic).unwrap();
    let config = config.replace("\"arithmetic\":\"float\"", &format!("\"arithmetic\":{arithmetic_json}"));
    let config = serde_json::from_str(&config).unwrap();
    allocated_by_steps::<USERS>(stages, &config, &mut state, FIRST);
    // At the end of a page, and where contexts get more segments.
    let positions = [30, 31, 32, 63, 64].into_iter().chain((120..CONTEXT).step_by(127));
    let allocated = allocated_by_steps::<USERS>(stages, &config, &mut state, positions);
    assert_eq!(allocated, (0, 0), "{USERS} users, {cache}, {arithmetic:?}: allocations and bytes");
}

#[test]
fn a_decode_step_allocates_nothing() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let case = CASES.iter().find(|case| case.name == "tiny").unwrap();
    let hf = case.config();
    let stages = Stages::<Model>::new(&case.checkpoint_path(), &hf, &Prefix::root());
    let before = allocated();
    drop(vec![0_u8; 100]);
    assert_eq!(allocated(), (before.0 + 1, before.1 + 100), "allocations are seen");
    for cache in [CacheFormat::F32, CacheFormat::Bf16, CacheFormat::Q8] {
        for arithmetic in [Arithmetic::Float, Arithmetic::Integer] {
            check::<1>(&stages, &hf, cache, arithmetic);
            check::<3>(&stages, &hf, cache, arithmetic);
        }
    }
    // As many as an expert's FP8 weights take integers for.
    check::<40>(&stages, &hf, CacheFormat::Bf16, Arithmetic::Integer);
}
