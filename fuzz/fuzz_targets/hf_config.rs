//! Any bytes as config.json: a model or an error, never a panic.

#![no_main]

use dsv3_deepseek::HfConfig;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(hf) = HfConfig::from_json(Path::new("config.json"), text)
    {
        assert!(hf.parameters() > 0 && hf.softmax_scale().is_finite());
    }
});
