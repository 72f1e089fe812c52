//! Runs documents the way a reader would. `parse` finds the blocks, `run` runs them, and `output` compares what they
//! print.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod links;
pub mod output;
pub mod parse;
pub mod run;

use std::path::{Path, PathBuf};

/// Root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the lab is in the repository")
        .to_owned()
}
