//! What `ARCHITECTURE.md` says of tables: on which side each would lie, if a server outgrew one database.

use std::{collections::BTreeSet, fs};

use rusqlite::Connection;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn each_table_belongs_to_a_room_or_to_the_server() {
    let database = Connection::open_in_memory().unwrap();
    let mut files: Vec<_> =
        fs::read_dir(format!("{ROOT}/migrations")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in files {
        database.execute_batch(&fs::read_to_string(file).unwrap()).unwrap();
    }
    let mut statement =
        database.prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'").unwrap();
    let tables: BTreeSet<String> =
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    assert!(tables.len() > 60, "{tables:?}");

    let document = fs::read_to_string(format!("{ROOT}/ARCHITECTURE.md")).unwrap();
    let (_, rest) = document.split_once("**Which tables belong to a room:**").unwrap();
    let (of_rooms, rest) = rest.split_once("**Which to the server:**").unwrap();
    let (of_server, _) = rest.split_once("**How rooms would lie.**").unwrap();
    let named = |text: &str| -> BTreeSet<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let (of_rooms, of_server) = (named(of_rooms), named(of_server));
    let both: Vec<_> = of_rooms.intersection(&of_server).collect();
    let named = &of_rooms | &of_server;
    let lacking: Vec<_> = tables.difference(&named).collect();
    let unknown: Vec<_> = named.difference(&tables).collect();
    assert!(both.is_empty() && lacking.is_empty() && unknown.is_empty(), "{both:?} {lacking:?} {unknown:?}");
}
