//! `lab/run reference`: writes `docs/reference.md` from three sources: the catalog of a throwaway PostgreSQL with the
//! extension, the comments on its objects, and the errors in the code.

mod catalog;
mod errors;
mod page;

use std::fs;

use anyhow::Result;

use crate::Lab;
use crate::paths::Paths;
use crate::release;

/// Path from the root of the repository.
pub const FILE: &str = "docs/reference.md";

/// Writes the page to its place in the repository. Returns what has no explanation.
pub fn write(paths: &Paths) -> Result<Vec<String>> {
    let (page, missing) = make(paths)?;
    fs::write(paths.root.join(FILE), page)?;
    Ok(missing)
}

/// Returns the page, and what has no explanation: objects, columns and arguments without a comment.
pub fn make(paths: &Paths) -> Result<(String, Vec<String>)> {
    let lab = Lab::start()?;
    let catalog = catalog::read(&lab)?;
    let missing = catalog.missing();
    Ok((page::page(&catalog, &release::version(paths)?)?, missing))
}
