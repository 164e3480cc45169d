#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../../tests/matrix_formats/generate.rs"]
mod generate;
#[path = "../../tests/properties/pdus.rs"]
mod pdus;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pdus::holds(data);
});
