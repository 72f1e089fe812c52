//! `docs/reference.md` matches the catalog, and everything in the catalog has a comment.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use lab::paths::Paths;
use lab::reference;

#[test]
fn everything_is_explained_and_the_reference_is_up_to_date() {
    let paths = Paths::ready().unwrap();
    let (page, missing) = reference::make(&paths).unwrap();
    assert!(missing.is_empty(), "not explained by a comment: {missing:#?}");
    let committed = fs::read_to_string(paths.root.join(reference::FILE)).unwrap();
    let different = page
        .lines()
        .zip(committed.lines())
        .find(|(fresh, old)| fresh != old)
        .map_or_else(
            || "their lengths".to_owned(),
            |(fresh, old)| format!("\n{fresh}\n{old}"),
        );
    assert!(
        page == committed,
        "{} is out of date, run `lab/run reference`; the first difference: {different}",
        reference::FILE
    );
}
