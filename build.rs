//! Puts the migrations into the program, for the engine that applies them itself.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
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
