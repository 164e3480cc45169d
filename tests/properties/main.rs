//! What must hold whatever arrives: the functions that the fuzz targets of `fuzz/` assert too, on the inputs that are kept
//! there, on generated ones, and on mutations of both.
//!
//! `VERGE_INPUTS` is the number of generated inputs for each property, `VERGE_SEED` the first seed. A failure prints the
//! seed and the input.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../matrix_formats/generate.rs"]
mod generate;

mod canonical_json;
mod imports;
mod inputs;
mod pdus;
mod server_names;
mod tables;
mod transactions;
mod x_matrix;

use std::{fs, path::Path, thread};

use common::setting;
use generate::{Random, mutated};

#[test]
fn canonical_json() {
    check("canonical_json", 500_000, inputs::json, canonical_json::holds);
}

#[test]
fn server_names() {
    check("server_names", 500_000, inputs::server_name, server_names::holds);
}

#[test]
fn x_matrix() {
    check("x_matrix", 50_000, inputs::x_matrix, x_matrix::holds);
}

#[test]
fn pdus() {
    check("pdus", 3_000, inputs::pdu, pdus::holds);
}

#[test]
fn transactions() {
    check("transactions", 3_000, inputs::transaction, transactions::holds);
}

/// Asserts the property called `name` of the kept inputs and of so many others. It says of each whether it is valid, which
/// a tenth of them has to be.
fn check(name: &str, count: u64, generate: fn(&mut Random) -> Vec<u8>, holds: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let kept: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut valid = 0;
    for (file, input) in files.iter().zip(&kept) {
        let case = Case { what: file.display().to_string(), input };
        valid += u64::from(holds(case.input));
    }
    assert!(valid * 2 > kept.len() as u64, "of the kept inputs of {name} only {valid} are valid");

    let (count, first) = (setting("VERGE_INPUTS", count), setting("VERGE_SEED", 0));
    let mut valid = 0;
    for seed in first..first + count {
        let mut random = Random(seed);
        let mut input = if random.chance(20) { kept[random.below(kept.len())].clone() } else { generate(&mut random) };
        if random.chance(50) {
            input = mutated(&mut random, &input);
        }
        let case = Case { what: format!("VERGE_SEED={seed} VERGE_INPUTS=1"), input: &input };
        valid += u64::from(holds(case.input));
    }
    println!("{name}: {count} inputs, {valid} of them valid");
    assert!(count < 100 || valid >= count / 10, "only {valid} of {count} inputs of {name} are valid");
}

/// The input at hand, which is told if it is the last one.
struct Case<'a> {
    what: String,
    input: &'a [u8],
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}: {}", self.what, self.input.escape_ascii());
        }
    }
}
