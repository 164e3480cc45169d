#![no_main]

#[allow(dead_code)]
#[path = "../../tests/matrix_formats/generate.rs"]
mod generate;
#[path = "../../tests/properties/x_matrix.rs"]
mod x_matrix;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    x_matrix::holds(data);
});
