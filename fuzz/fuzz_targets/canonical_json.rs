#![no_main]

#[path = "../../tests/properties/canonical_json.rs"]
mod canonical_json;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    canonical_json::holds(data);
});
