//! Settings under which a type's text is exact and the same in every session.

use crate::pg::settings::{Changed, TextSettings, is_hex, is_utc};

/// Settings that the text of some types depends on, besides those of dates, intervals and floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// `timezone`.
    pub zone: bool,
    /// `search_path`.
    pub path: bool,
    /// `bytea_output`.
    pub bytes: bool,
}

impl Needs {
    /// Any of them.
    pub const ALL: Needs = Needs {
        zone: true,
        path: true,
        bytes: true,
    };
    /// The time zone.
    pub const ZONE: Needs = Needs {
        zone: true,
        path: false,
        bytes: false,
    };
    /// The search path.
    pub const PATH: Needs = Needs {
        zone: false,
        path: true,
        bytes: false,
    };
    /// How bytes are shown.
    pub const BYTES: Needs = Needs {
        zone: false,
        path: false,
        bytes: true,
    };

    /// What either needs.
    pub fn and(self, other: Needs) -> Needs {
        Needs {
            zone: self.zone || other.zone,
            path: self.path || other.path,
            bytes: self.bytes || other.bytes,
        }
    }
}

/// Sets what differs: dates in ISO form, floats to their last digit, and what is needed: UTC, names of all but the
/// system's own objects with their schema, bytes as hexadecimal digits. The result is to be undone.
pub fn fix(needs: Needs) -> Changed {
    let mut changed = Changed::default();
    let now = TextSettings::current();
    for (right, name, value) in [
        (now.iso_dates, c"datestyle", c"ISO"),
        (now.postgres_intervals, c"intervalstyle", c"postgres"),
        (now.exact_floats, c"extra_float_digits", c"1"),
        (!needs.zone || is_utc(), c"timezone", c"UTC"),
        (!needs.path, c"search_path", c"pg_catalog, pg_temp"),
        (!needs.bytes || is_hex(), c"bytea_output", c"hex"),
    ] {
        if !right {
            changed.set(name, value);
        }
    }
    changed
}
