//! Settings under which a type's text is exact and the same in every session.

use crate::pg::settings::{Changed, TextSettings, is_utc};

/// Sets what differs: dates in ISO form, floats to their last digit; UTC if values are `zoned`. `search_path` is
/// narrowed if asked for. The result is to be undone.
pub fn fix(zoned: bool, search_path: bool) -> Changed {
    let mut changed = Changed::default();
    let now = TextSettings::current();
    for (right, name, value) in [
        (now.iso_dates, c"datestyle", c"ISO"),
        (now.postgres_intervals, c"intervalstyle", c"postgres"),
        (now.exact_floats, c"extra_float_digits", c"1"),
        (!zoned || is_utc(), c"timezone", c"UTC"),
        (!search_path, c"search_path", c"pg_catalog, pg_temp"),
    ] {
        if !right {
            changed.set(name, value);
        }
    }
    changed
}
