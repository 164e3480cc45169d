//! Puts the migrations into the program, for the engine that applies them itself, and bounds its memory.

use std::{env, error::Error, fs, path::Path};

/// The most memory that the module may have, in bytes. The isolate has 128 MB for it and all that is JavaScript's: where the module
/// asks for more it is begun anew, which the platform would do with the whole isolate.
const MAX_MEMORY: u32 = 96 * 1024 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    if env::var("CARGO_CFG_TARGET_ARCH")? == "wasm32" {
        println!("cargo::rustc-link-arg-cdylib=--max-memory={MAX_MEMORY}");
    }
    println!("cargo::rerun-if-changed=migrations");
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("migrations");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder)? {
        names.push(entry?.file_name().into_string().map_err(|name| format!("{name:?} is no name of a migration"))?);
    }
    names.sort();
    let mut code = String::from(
        "/// Each migration's name and text, in order.\npub(in crate::edge) const MIGRATIONS: &[(&str, &str)] = &[\n",
    );
    for name in names.iter().filter(|name| name.ends_with(".sql")) {
        let path = folder.join(name);
        code.push_str(&format!("    ({name:?}, include_str!({path:?})),\n"));
    }
    code.push_str("];\n");
    Ok(fs::write(Path::new(&env::var("OUT_DIR")?).join("migrations.rs"), code)?)
}
