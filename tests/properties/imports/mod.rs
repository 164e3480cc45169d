//! What the files under `src/` import: no file takes part in a circle, and none imports against the order that
//! `ARCHITECTURE.md` states. Imports are `use` lines and paths in code alike; of a name that a file only passes on, the
//! file that defines it counts. Comments, texts and what is compiled for tests only do not count.

mod paths;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use paths::{Import, Scanner};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn no_file_imports_against_the_order() {
    let document = fs::read_to_string(format!("{ROOT}/ARCHITECTURE.md")).unwrap();
    let order = Order::read(&document).expect("ARCHITECTURE.md states the order of imports");
    let mut files = Vec::new();
    collect(Path::new(&format!("{ROOT}/src")), &mut Vec::new(), &mut files);
    assert!(files.len() > 80, "the files under src/ are read");
    let crate_ = Crate::read(files.iter().map(|(module, text)| (module.clone(), text.as_str())));
    assert!(crate_.imports.values().map(BTreeSet::len).sum::<usize>() > 400, "their imports are found");
    let faults = crate_.faults(&order);
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The modules of a source tree, with their texts.
fn collect(folder: &Path, module: &mut Vec<String>, files: &mut Vec<(Module, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        module.push(name.clone());
        if path.is_dir() {
            collect(&path, module, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests" {
            let own = &module[..module.len() - usize::from(matches!(name.as_str(), "mod" | "lib"))];
            files.push((own.to_vec(), fs::read_to_string(&path).unwrap()));
        }
        module.pop();
    }
}

/// The path of a module below the crate.
type Module = Vec<String>;

/// Which folders and files may import which: each those of the lines below its own.
struct Order(Vec<Vec<String>>);

impl Order {
    /// The block that follows the line `The order of imports`, one line for each step, the topmost first.
    fn read(document: &str) -> Option<Self> {
        let rest = document.split_once("The order of imports")?.1;
        let lines = rest.lines().skip_while(|line| !line.starts_with("    "));
        let lines = lines.take_while(|line| line.starts_with("    "));
        let step = |line: &str| line.split(',').map(|unit| unit.trim().replace('/', "::")).collect();
        Some(Self(lines.map(step).collect())).filter(|order| order.0.len() > 1)
    }

    /// The step that a module stands on, and the name by which it stands there.
    fn place(&self, module: &[String]) -> Option<(usize, &str)> {
        (1..=module.len()).rev().find_map(|length| {
            let name = module[..length].join("::");
            self.0
                .iter()
                .enumerate()
                .find_map(|(step, units)| units.iter().find(|unit| **unit == name).map(|unit| (step, unit.as_str())))
        })
    }
}

/// The modules of a crate that are files, and what each imports of the others.
struct Crate {
    imports: BTreeMap<Module, BTreeSet<Module>>,
}

impl Crate {
    fn read<'t>(files: impl Iterator<Item = (Module, &'t str)>) -> Self {
        let read: BTreeMap<Module, Vec<Import>> =
            files.map(|(module, text)| (module.clone(), Scanner::scan(module, text))).collect();
        let names = Names {
            files: read.keys().cloned().collect(),
            passed_on: read
                .values()
                .flatten()
                .filter_map(|import| Some(((import.within.clone(), import.name.clone()?), import.path.clone())))
                .collect(),
        };
        let resolve = |(file, found): (&Module, &Vec<Import>)| {
            let targets = found.iter().filter_map(|import| {
                let target = names.file(&import.within, &import.path, 0)?;
                // What a folder's own file passes on of its files, it does not import itself.
                let passed_on = import.public && target.starts_with(file);
                (target != *file && !passed_on).then_some(target)
            });
            (file.clone(), targets.collect())
        };
        Self { imports: read.iter().map(resolve).collect() }
    }

    fn faults(&self, order: &Order) -> Vec<String> {
        let mut faults = Vec::new();
        for (from, to) in self.imports.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
            let wrong = match (order.place(from), order.place(to)) {
                // The crate's own file is above all others.
                _ if from.is_empty() => None,
                _ if to.is_empty() => Some("is imported, and may not be"),
                (None, _) => Some("imports, and does not stand in the order"),
                (_, None) => Some("is imported, and does not stand in the order"),
                (Some((_, one)), Some((_, same))) if one == same => None,
                (Some((above, _)), Some((below, _))) if above < below => None,
                _ => Some("imports against the order"),
            };
            faults.extend(wrong.map(|wrong| format!("{} -> {}: {wrong}", show(from), show(to))));
        }
        faults.extend(self.circles());
        faults
    }

    /// A circle for each set of files that reach each other.
    fn circles(&self) -> Vec<String> {
        let mut circles = Vec::new();
        let mut seen = BTreeSet::new();
        for start in self.imports.keys() {
            if seen.contains(start) {
                continue;
            }
            if let Some(path) = self.way_back(start) {
                circles.push(format!("a circle: {}", path.iter().map(show).collect::<Vec<_>>().join(" -> ")));
                seen.extend(path);
            }
        }
        circles
    }

    /// The shortest way from a file through its imports back to it.
    fn way_back<'m>(&'m self, start: &'m Module) -> Option<Vec<&'m Module>> {
        let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut next = std::collections::VecDeque::from([start]);
        while let Some(file) = next.pop_front() {
            for to in self.imports.get(file).into_iter().flatten().filter(|to| !are_one(file, to)) {
                if to == start {
                    let mut path = vec![start, file];
                    while let Some(earlier) = before.get(path[path.len() - 1]) {
                        path.push(earlier);
                    }
                    path.reverse();
                    path.dedup();
                    return Some(path);
                }
                if !before.contains_key(to) {
                    before.insert(to, file);
                    next.push_back(to);
                }
            }
        }
        None
    }
}

/// Whether two files are one module of the protocol in two files: `event/mod.rs`, and what stands beside it. Such files share
/// what is private to them.
fn are_one(one: &Module, other: &Module) -> bool {
    let (outer, inner) = if one.len() < other.len() { (one, other) } else { (other, one) };
    outer.len() > 1 && outer[0] == "matrix" && inner.starts_with(outer)
}

fn show(module: &(impl AsRef<[String]> + ?Sized)) -> String {
    if module.as_ref().is_empty() { "lib".to_owned() } else { module.as_ref().join("::") }
}

/// What names stand for.
struct Names {
    files: BTreeSet<Module>,
    /// What a module has imported under a name, which others may import from there.
    passed_on: BTreeMap<(Module, String), Vec<String>>,
}

impl Names {
    /// The file that a path in `within` leads to; `None` where it leads out of the crate.
    fn file(&self, within: &[String], path: &[String], steps: usize) -> Option<Module> {
        let mut module = within.to_vec();
        for (index, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" => module.clear(),
                "super" => _ = module.pop(),
                "self" => {}
                name => {
                    module.push(name.to_owned());
                    if self.files.contains(&module) {
                        continue;
                    }
                    let passed_on = self.passed_on.get(&(module[..module.len() - 1].to_vec(), name.to_owned()));
                    module.pop();
                    match passed_on {
                        // A macro is passed on under its own name.
                        Some(origin) if origin[..] != path[index..] && steps < 8 => {
                            let origin = self.file(&module, origin, steps + 1)?;
                            let rest = [&["self".to_owned()], &path[index + 1..]].concat();
                            return self.file(&origin, &rest, steps + 1);
                        }
                        // Another crate's.
                        None if index == 0 => return None,
                        _ => break,
                    }
                }
            }
        }
        while !self.files.contains(&module) {
            module.pop()?;
        }
        Some(module)
    }
}

const ORDER: &str = "The order of imports:\n\n    top\n    left, right/inner\n    matrix\n\nText.";

/// The faults in a crate of these files.
fn faults(files: &[(&str, &str)]) -> Vec<String> {
    let module = |path: &str| path.split('/').map(str::to_owned).collect::<Module>();
    let folders = [("matrix", "pub mod event;")];
    let files = folders.iter().chain(files).map(|(path, text)| (module(path), *text));
    Crate::read(files).faults(&Order::read(ORDER).unwrap())
}

#[test]
fn imports_along_the_order_are_allowed() {
    let files = [
        ("top", "use crate::{left, matrix::event::Event}; fn f() { right::inner::g() }"),
        ("left", "use crate::matrix::event::{self, Event};"),
        ("right", "pub mod inner;"),
        ("right/inner", "use std::fmt; use crate::matrix::event::Event as E; use super::inner::own;"),
        ("matrix/event", "mod format;"),
    ];
    assert_eq!(faults(&files), Vec::<String>::new());
}

#[test]
fn an_import_against_the_order_is_found_however_it_is_written() {
    for text in [
        "use crate::top::Server;",
        "pub(crate) use crate::{matrix, top::{self, Server}};",
        "use crate::{matrix::event::Event, top};",
        "use super::top as below;",
        "fn f() { crate::top::start() }",
        "fn f(x: &mut super::top::Server) {}",
        "macro_rules! m { () => { $crate::top::start!() } }",
        "mod inside { use super::super::top::Server; }",
        "mod inside { } use super::top::Server;",
        "fn f<'a>(x: &'a str) -> char { '\"' } use crate::top::Server; // \"",
        "use crate::facade::Server;",
        "use crate::facade::renamed::start;",
        "#[cfg(test)] mod tests { fn f() { } } use crate::top::Server;",
        "use crate::right::inner::Thing;",
    ] {
        let facade = ("right", "pub use crate::top::Server; pub use crate::top as renamed; pub mod inner;");
        let text = text.replace("crate::facade", "crate::right");
        let files = [("top", ""), ("left", text.as_str()), facade, ("right/inner", ""), ("matrix/event", "")];
        let found = faults(&files);
        let of_left: Vec<_> = found.iter().filter(|fault| fault.starts_with("left -> ")).collect();
        assert_eq!(of_left.len(), 1, "{text}: {found:?}");
        assert!(of_left[0].ends_with("imports against the order"), "{text}: {found:?}");
    }
}

#[test]
fn what_is_no_import_is_not_taken_for_one() {
    for text in [
        "// use crate::top::Server;",
        "/* use crate::top; /* nested */ crate::top::start() */",
        "const A: &str = \"crate::top::start\"; const B: &str = r#\"\"; crate::top::start\"#;",
        "#[cfg(test)] mod tests { use crate::top::Server; } #[cfg(test)] use crate::top::Server;",
        "//! See [`crate::top`].",
        "pub(in crate::top) fn f() {}",
        "use other_crate::top::Server; fn f() { other::top::start() }",
    ] {
        assert_eq!(faults(&[("top", ""), ("left", text), ("matrix/event", "")]), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn circles_are_found_within_one_folder_too() {
    let two = faults(&[("matrix/a", "use super::b::B;"), ("matrix/b", "use super::a::A;")]);
    assert_eq!(two, ["a circle: matrix::a -> matrix::b -> matrix::a"]);
    let folder = faults(&[("left", "mod inner; fn f() { inner::g() }"), ("left/inner", "use super::Left;")]);
    assert_eq!(folder, ["a circle: left -> left::inner -> left"]);
    // What a folder's file only passes on is no circle.
    let facade = [("left", "mod a; mod b; pub use a::A;"), ("left/a", ""), ("left/b", "use super::A;")];
    assert_eq!(faults(&facade), Vec::<String>::new());
    let user = [("left", "mod a; pub use a::A; fn f(a: A) {}"), ("left/a", "use super::Left;")];
    assert_eq!(faults(&user), ["a circle: left -> left::a -> left"]);
    // One module of the protocol in several files may name its own parts; the parts make no circle.
    let one = [("matrix/event", "mod a; use a::A;"), ("matrix/event/a", "use super::Event;")];
    assert_eq!(faults(&one), Vec::<String>::new());
    let parts = [("matrix/event", ""), ("matrix/event/a", "use super::b::B;"), ("matrix/event/b", "use super::a::A;")];
    assert_eq!(faults(&parts), ["a circle: matrix::event::a -> matrix::event::b -> matrix::event::a"]);
}

#[test]
fn a_file_that_the_order_does_not_name_is_found() {
    let files = [("new", "use crate::matrix::event::Event;"), ("left", "use crate::new::N;"), ("matrix/event", "")];
    assert_eq!(
        faults(&files),
        [
            "left -> new: is imported, and does not stand in the order",
            "new -> matrix::event: imports, and does not stand in the order"
        ]
    );
    assert!(Order::read("nothing of the kind").is_none());
}
