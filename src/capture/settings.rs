//! Settings under which a type's text is exact and the same in every session.

use std::ffi::CStr;

use pgrx::pg_sys;

/// The settings in force before; to be handed back with [`Fixed::leave`]. An ERROR puts them back by itself.
pub struct Fixed(Option<i32>);

impl Fixed {
    /// Sets what differs: dates in ISO form, UTC, floats to their last digit. `search_path` is narrowed if asked for.
    pub fn enter(search_path: bool) -> Fixed {
        let mut fixed = Fixed(None);
        // SAFETY: reads variables of this process; 1 is USE_ISO_DATES, 0 is INTSTYLE_POSTGRES.
        let (dates, intervals, digits, zone) = unsafe {
            (
                pg_sys::DateStyle == 1,
                pg_sys::IntervalStyle == 0,
                pg_sys::extra_float_digits >= 1,
                CStr::from_ptr(pg_sys::GetConfigOption(c"timezone".as_ptr(), false, false)) == c"UTC",
            )
        };
        if !dates {
            fixed.set(c"datestyle", c"ISO");
        }
        if !intervals {
            fixed.set(c"intervalstyle", c"postgres");
        }
        if !digits {
            fixed.set(c"extra_float_digits", c"1");
        }
        if !zone {
            fixed.set(c"timezone", c"UTC");
        }
        if search_path {
            fixed.set(c"search_path", c"pg_catalog, pg_temp");
        }
        fixed
    }

    fn set(&mut self, name: &CStr, value: &CStr) {
        // SAFETY: C strings that are copied. The level is closed by `leave`, or by the end of the (sub)transaction.
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
    pub fn leave(self) {
        if let Some(level) = self.0 {
            // SAFETY: the level that `set` opened, and every one above it is closed.
            unsafe { pg_sys::AtEOXact_GUC(true, level) }
        }
    }
}
