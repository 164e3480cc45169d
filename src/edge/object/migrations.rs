//! The migrations, applied by the object when it starts: the files that `wrangler d1 migrations apply` reads, noted down in the
//! table in which it notes them.

use std::collections::BTreeSet;

use crate::{log::Reason, platform::DatabaseError};

include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// Why the database cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
pub(in crate::edge) enum MigrationError {
    /// It has a migration that this version does not know.
    #[error(
        "it is newer than this version of Verge, which does not know its migration {0}; deploy the newer version again"
    )]
    Newer(String),
    /// What it has cannot be told.
    #[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
    #[error("its migrations cannot be read: {0}")]
    Unreadable(DatabaseError),
    /// A migration fails.
    #[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
    #[error("its migration {0} cannot be applied: {1}")]
    Failed(&'static str, DatabaseError),
}

impl Reason for MigrationError {
    fn reason(&self) -> String {
        self.to_string()
    }
}

/// The names of the migrations that a database with `applied` does not have yet, with their texts, in order.
///
/// # Errors
/// Where the database has one that this version does not know.
pub(in crate::edge) fn missing<'m>(
    known: &'m [(&'m str, &'m str)],
    applied: &BTreeSet<String>,
) -> Result<Vec<(&'m str, &'m str)>, MigrationError> {
    if let Some(newer) = applied.iter().find(|name| !known.iter().any(|(known, _)| known == name)) {
        return Err(MigrationError::Newer(newer.clone()));
    }
    Ok(known.iter().filter(|(name, _)| !applied.contains(*name)).copied().collect())
}

/// Brings the database up to date, each migration as one transaction with the note of it.
///
/// # Errors
/// Where a migration fails, or the database is newer.
#[cfg(target_arch = "wasm32")]
pub(super) fn migrate(database: &super::database::ObjectDatabase) -> Result<(), MigrationError> {
    use crate::platform::Statement;

    const TABLE: &str = "CREATE TABLE IF NOT EXISTS d1_migrations (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, \
         applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)";
    const APPLIED: &str = "SELECT name FROM d1_migrations";
    const NOTE: &str = "INSERT INTO d1_migrations (name) VALUES (?1)";

    let cannot = MigrationError::Unreadable;
    database.script(TABLE).map_err(cannot)?;
    let rows = database.run(&Statement::new(APPLIED, [])).map_err(cannot)?;
    let applied = rows.iter().map(|row| row.text(0).map(str::to_owned)).collect::<Result<_, _>>().map_err(cannot)?;
    for (name, text) in missing(MIGRATIONS, &applied)? {
        let apply = || {
            database.script(text)?;
            database.run(&Statement::new(NOTE, [name.into()])).map(drop)
        };
        database.atomically(apply).map_err(|error| MigrationError::Failed(name, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn all_files_are_known_in_order() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            MIGRATIONS.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>(),
            files.iter().map(name).collect::<Vec<_>>()
        );
        for ((_, text), file) in MIGRATIONS.iter().zip(&files) {
            assert_eq!(*text, std::fs::read_to_string(file).unwrap());
            assert!(
                text.trim_end().ends_with(';'),
                "{file:?}: workerd takes what follows the last statement for one more"
            );
        }
    }

    #[test]
    fn a_database_gets_what_it_lacks_and_is_refused_where_it_is_newer() {
        let known = [("0001_a.sql", "a"), ("0002_b.sql", "b"), ("0003_c.sql", "c")];
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(missing(&known, &set(&[])).unwrap(), known);
        // One that came later with a lower number is applied too, as wrangler does.
        assert_eq!(missing(&known, &set(&["0001_a.sql", "0003_c.sql"])).unwrap(), known[1..2]);
        assert_eq!(missing(&known, &set(&["0001_a.sql", "0002_b.sql", "0003_c.sql"])).unwrap(), []);
        let error = missing(&known, &set(&["0001_a.sql", "0004_d.sql"])).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("0004_d.sql") && error.contains("newer"), "{error}");
    }
}
