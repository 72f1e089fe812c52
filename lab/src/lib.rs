//! Throwaway PostgreSQL and NATS servers on free ports, used by the demo, the end-to-end tests and the benchmarks.
//!
//! The relay and the pure modules of the extension are included by path, because the extension is a `cdylib`, which
//! nothing can link against. These files never import pgrx.

#[path = "../../src/error.rs"]
pub mod error;
#[path = "../../src/message.rs"]
pub mod message;
#[path = "../../src/relay/mod.rs"]
pub mod relay;
#[path = "../../src/subject.rs"]
pub mod subject;

pub mod bench;
pub mod chaos;
pub mod checks;
pub mod cluster;
pub mod debian;
pub mod debs;
pub mod demo;
pub mod dependencies;
pub mod hostile;
pub mod install;
pub mod lab;
mod lint;
pub mod matrix;
pub mod nats;
pub mod package;
pub mod package_try;
pub mod packages;
pub mod paths;
pub mod postgres;
pub mod process;
pub mod progress;
pub mod reference;
pub mod regress;
pub mod release;
pub mod second_major;
pub mod setup;
pub mod soak;
pub mod sql_check;
pub mod sql_script;
pub mod test_files;
pub mod tools;
pub mod up;
pub mod upgrade_script;
pub mod user;

pub use crate::lab::{Lab, StoredMessage, wait_until};
