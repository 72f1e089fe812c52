//! Whether the SQL of a database and the library belong together. Free of PostgreSQL.

/// Why a worker with this library cannot serve this SQL, and what to do; `None` if their versions are the same.
pub fn mismatch(sql: &str, library: &str) -> Option<String> {
    if sql == library {
        return None;
    }
    let todo = if parts(sql) < parts(library) {
        "run alter extension pg_jetstream update"
    } else {
        "restart PostgreSQL, with the library of that version installed"
    };
    Some(format!(
        "waiting: extension is version {sql}, library {library}; {todo}"
    ))
}

/// The numbers of a version, to be compared as such.
fn parts(version: &str) -> Vec<u32> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_older() {
        assert_eq!(mismatch("0.1.0", "0.1.0"), None);
        let old_sql = mismatch("0.9.0", "0.10.0").unwrap();
        assert!(
            old_sql.ends_with("library 0.10.0; run alter extension pg_jetstream update"),
            "{old_sql}"
        );
        let old_library = mismatch("1.0.0", "0.10.0").unwrap();
        assert!(
            old_library.contains("version 1.0.0, library 0.10.0; restart PostgreSQL"),
            "{old_library}"
        );
        assert!(old_library.len() <= 160, "what status() has room for");
    }
}
