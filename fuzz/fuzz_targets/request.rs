//! Reads any bytes as the body of a chat request and of a completion request, up to where a model is needed. Nothing may
//! panic, and what is refused is refused as the client's mistake.
//!
//! ```sh
//! mkdir -p fuzz/corpus/request
//! cargo +nightly fuzz run request fuzz/corpus/request fuzz/seeds/request
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = dsv3_server::check_body(bytes) {
        assert_eq!(error.status().as_u16(), 400, "{error:?}");
        assert!(!error.message().is_empty());
    }
});
