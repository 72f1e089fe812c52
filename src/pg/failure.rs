//! Errors as they leave this process: what ends it, and what clients are not to see.

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use pgrx::pg_sys;

/// Keeps Rust's backtraces out of errors, where clients would see them: pgrx adds one to the DETAIL of each. To be called
/// while the library is loaded, before its first error.
pub fn disable_backtraces() {
    const NAME: &str = "RUST_LIB_BACKTRACE";
    let before = std::env::var_os(NAME);
    // SAFETY: the process has one thread while it loads libraries. The variable is read once for the life of the library,
    // here; others find it as it was.
    unsafe {
        std::env::set_var(NAME, "0");
        drop(std::backtrace::Backtrace::capture());
        match before {
            Some(value) => std::env::set_var(NAME, value),
            None => std::env::remove_var(NAME),
        }
    }
}

/// Who is told, and the hook that was there before.
struct Watch {
    tell: fn(&str),
    previous: pg_sys::emit_log_hook_type,
}

static WATCH: OnceLock<Watch> = OnceLock::new();

/// Calls `tell` with the message, and the hint, of each ERROR and FATAL that this process writes to the log from now on:
/// of one that is caught, nothing is written. `tell` must not raise an ERROR.
pub fn watch(tell: fn(&str)) {
    // SAFETY: a hook of this process, set once, on its main thread.
    unsafe {
        let previous = pg_sys::emit_log_hook;
        if WATCH.set(Watch { tell, previous }).is_ok() {
            pg_sys::emit_log_hook = Some(emitted);
        }
    }
}

/// # Safety
///
/// Called by PostgreSQL with an error.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn emitted(error: *mut pg_sys::ErrorData) {
    let Some(watch) = WATCH.get() else { return };
    // SAFETY: as above; its texts are null or C strings.
    unsafe {
        if (*error).elevel >= pgrx::PgLogLevel::ERROR as i32 {
            let text = |text: *const c_char| (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy());
            let mut said = text((*error).message).unwrap_or_default().into_owned();
            if let Some(hint) = text((*error).hint) {
                said = format!("{said} (hint: {hint})");
            }
            (watch.tell)(&said);
        }
        if let Some(previous) = watch.previous {
            previous(error);
        }
    }
}
