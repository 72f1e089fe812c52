//! Settings of this session, changed for a while.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Settings on which the text of values depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSettings {
    /// `datestyle` begins with ISO.
    pub iso_dates: bool,
    /// `intervalstyle` is `postgres`.
    pub postgres_intervals: bool,
    /// `extra_float_digits` is at least 1.
    pub exact_floats: bool,
}

impl TextSettings {
    /// Those in force.
    pub fn current() -> TextSettings {
        // SAFETY: reads variables of this process; 1 is USE_ISO_DATES, 0 is INTSTYLE_POSTGRES.
        unsafe {
            TextSettings {
                iso_dates: pg_sys::DateStyle == 1,
                postgres_intervals: pg_sys::IntervalStyle == 0,
                exact_floats: pg_sys::extra_float_digits >= 1,
            }
        }
    }
}

/// Whether `timezone` is UTC.
pub fn is_utc() -> bool {
    // SAFETY: the setting exists; its text is read before anything can change it.
    unsafe { CStr::from_ptr(pg_sys::GetConfigOption(c"timezone".as_ptr(), false, false)) == c"UTC" }
}

/// Whether `bytea_output` is `hex`.
pub fn is_hex() -> bool {
    // SAFETY: as above.
    unsafe { CStr::from_ptr(pg_sys::GetConfigOption(c"bytea_output".as_ptr(), false, false)) == c"hex" }
}

/// Settings that were changed, to be put back with [`Changed::undo`]. An ERROR puts them back by itself.
#[derive(Default)]
pub struct Changed(Option<i32>);

impl Changed {
    /// Changes a setting until `undo`.
    pub fn set(&mut self, name: &CStr, value: &CStr) {
        // SAFETY: C strings that are copied. The level is closed by `undo`, or by the end of the (sub)transaction.
        unsafe {
            if self.0.is_none() {
                self.0 = Some(pg_sys::NewGUCNestLevel());
            }
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }

    /// Puts back what was changed.
    pub fn undo(self) {
        if let Some(level) = self.0 {
            // SAFETY: the level that `set` opened, and every one above it is closed.
            unsafe { pg_sys::AtEOXact_GUC(true, level) }
        }
    }

    /// The same, and puts back what anybody changed since.
    pub fn undo_all(self) {
        if let Some(level) = self.0 {
            // SAFETY: as above.
            unsafe { pg_sys::AtEOXact_GUC(false, level) }
        }
    }
}
