#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/properties/transactions.rs"]
mod transactions;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    transactions::holds(data);
});
