//! Panics, caught around each unit of work: what caused one is set aside, and everything else continues.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt;
use tracing::error;

/// Does a piece of work.
///
/// Errors: the text of a panic.
pub(super) fn guard<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(text)
}

/// The same of work that takes time.
pub(super) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(text)
}

/// What a panic said.
fn text(panic: Box<dyn Any + Send>) -> String {
    let text = match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or("no text", |text| text).to_owned(),
    };
    // The subscriber may be what panicked.
    let _ = catch_unwind(|| error!(target: "pg_jetstream", "a panic was caught: {text}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_text() {
        assert_eq!(guard(|| 1), Ok(1));
        assert_eq!(guard(|| panic!("plain")), Err::<(), _>("plain".to_owned()));
        assert_eq!(guard(|| panic!("with {}", 1)), Err::<(), _>("with 1".to_owned()));
        assert_eq!(guard(|| std::panic::panic_any(1)), Err::<(), _>("no text".to_owned()));
    }
}
