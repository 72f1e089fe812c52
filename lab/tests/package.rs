//! Tries the Debian package of the installed extension in a clean Debian, like `make package TRY=1` does for each major
//! version. Run by hand, because it requires root, `debootstrap` and a minute: `cargo test -p lab --test package --
//! --ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use lab::paths::Paths;
use lab::{package, package_try};

#[test]
#[ignore = "requires root and debootstrap"]
fn the_package_publishes_in_a_clean_debian_and_leaves_nothing_behind() {
    let paths = Paths::ready().unwrap();
    let deb = package::debian(&paths, paths.major).unwrap();
    package_try::run(&paths, paths.major, &deb).unwrap_or_else(|error| panic!("{error:#}"));
}
