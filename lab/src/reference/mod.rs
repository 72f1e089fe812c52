//! `lab/run reference`: writes `docs/reference.md` from the catalog of a throwaway PostgreSQL with the extension, from
//! the comments on its objects, and from the errors that the code can give.

mod catalog;
mod errors;
mod page;

use std::fs;

use anyhow::Result;

use crate::Lab;
use crate::paths::Paths;
use crate::release;

/// The file, from the root of the repository.
pub const FILE: &str = "docs/reference.md";

/// Writes the page where it belongs; returns what is not explained.
pub fn write(paths: &Paths) -> Result<Vec<String>> {
    let (page, missing) = make(paths)?;
    fs::write(paths.root.join(FILE), page)?;
    Ok(missing)
}

/// The page as it should be, and what is not explained: objects, columns and arguments without a comment.
pub fn make(paths: &Paths) -> Result<(String, Vec<String>)> {
    let lab = Lab::start()?;
    let catalog = catalog::read(&lab)?;
    let missing = catalog.missing();
    Ok((page::page(&catalog, &release::version(paths)?)?, missing))
}
