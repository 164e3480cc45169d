#![no_main]

#[path = "../../tests/properties/server_names.rs"]
mod server_names;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    server_names::holds(data);
});
