//! What the catalogs say of this extension, its tables and the databases.

use std::cell::Cell;
use std::ffi::CStr;
use std::ptr::null_mut;

use pgrx::pg_sys;
use pgrx::{IntoDatum, Spi, pg_guard};

use super::fields::with_utf8;

/// Object id of a database by name; to be called in a transaction, also by a worker without a database.
///
/// Scans the catalog as autovacuum's launcher does (`get_database_list`): its indexes cannot be opened without a
/// database before some backend has written the cache of shared relations.
pub fn database_oid(name: &str) -> Option<u32> {
    let mut found = None;
    // SAFETY: a shared catalog, opened and closed here; the tuple is read before the scan goes on.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let row = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if CStr::from_ptr((*row).datname.data.as_ptr()).to_bytes() == name.as_bytes() {
                found = Some((*row).oid.to_u32());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}

/// This extension as a database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Its object id.
    pub oid: u32,
    /// The version of its SQL.
    pub version: String,
}

/// The extension in the current database, if it is there; to be called in a transaction. Looks at the catalog itself,
/// as `get_extension_oid` does, which says nothing of the version.
pub fn extension() -> Option<Extension> {
    // SAFETY: a catalog, opened and closed here and searched by its index of names; the tuple is read before the scan
    // ends. The name outlives the key, and no extension is without a version.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as i32);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_extension_extname as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::F_NAMEEQ.into(),
            pg_sys::Datum::from(c"pg_jetstream".as_ptr()),
        );
        let index = pg_sys::Oid::from(pg_sys::ExtensionNameIndexId);
        let scan = pg_sys::systable_beginscan(relation, index, true, std::ptr::null_mut(), 1, &mut key);
        let tuple = pg_sys::systable_getnext(scan);
        let found = (!tuple.is_null()).then(|| {
            let column = pg_sys::Anum_pg_extension_extversion as i32;
            let mut null = false;
            let version = pg_sys::heap_getattr(tuple, column, (*relation).rd_att, &mut null);
            Extension {
                oid: (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_extension>())
                    .oid
                    .to_u32(),
                version: super::values::text(version),
            }
        });
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        found
    }
}

/// Object id of a table of this extension; to be called in a transaction.
pub fn table_oid(name: &CStr) -> Option<u32> {
    // SAFETY: looks up names; missing ones give InvalidOid.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(c"jetstream".as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
}

/// Whether a table of this extension has ever held a row since it was last emptied; to be called in a transaction.
pub fn has_pages(name: &CStr) -> bool {
    let Some(oid) = table_oid(name) else { return false };
    // SAFETY: opens a relation if it exists, asks for its length, and closes it.
    unsafe {
        let relation = pg_sys::try_relation_open(pg_sys::Oid::from(oid), pg_sys::AccessShareLock as i32);
        if relation.is_null() {
            return false;
        }
        let pages = pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as i32);
        pages > 0
    }
}

/// Locks a table against being dropped or altered until the transaction ends; false if it is gone.
pub fn hold_table(oid: u32) -> bool {
    // SAFETY: opens a relation if it exists and closes it; the lock stays.
    unsafe {
        let relation = pg_sys::try_relation_open(pg_sys::Oid::from(oid), pg_sys::RowExclusiveLock as i32);
        if relation.is_null() {
            return false;
        }
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
    }
    true
}

/// Name of a table, without its schema; none if there is no such table.
pub fn relation_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: looks up the catalog; null for a table that does not exist, else a C string.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// A query about a table: `$1` is its object id, `$2` a text. It finds one row of one column.
///
/// The session plans it once: planning takes several times as long as running it. PostgreSQL plans it again when an
/// object that it names changes.
pub struct Lookup {
    query: &'static CStr,
    plan: Cell<pg_sys::SPIPlanPtr>,
}

impl Lookup {
    pub const fn new(query: &'static CStr) -> Lookup {
        Lookup {
            query,
            plan: Cell::new(null_mut()),
        }
    }

    /// What it finds, in UTF-8, by what the catalogs say at this moment: the snapshot of the transaction may be older than
    /// the table's definition. None if there is no row.
    pub fn latest(&self, relation: pg_sys::Oid, text: &str) -> Option<String> {
        Spi::connect(|_| {
            let mut values = [pg_sys::Datum::from(relation), text.into_datum()?];
            // SAFETY: connected; the plan is one for the life of the session, and has as many parameters as there are
            // values. A read-only statement uses the snapshot that it is given, which is the active one here; an ERROR
            // takes it off by itself. The table of results is read before the connection ends.
            unsafe {
                let plan = self.plan()?;
                pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
                let code = pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), null_mut(), true, 1);
                pg_sys::PopActiveSnapshot();
                if code != pg_sys::SPI_OK_SELECT as i32 || pg_sys::SPI_processed == 0 {
                    return None;
                }
                let table = &*pg_sys::SPI_tuptable;
                let value = pg_sys::SPI_getvalue(*table.vals, table.tupdesc, 1);
                (!value.is_null()).then(|| {
                    with_utf8(CStr::from_ptr(value).to_bytes(), |text| {
                        String::from_utf8_lossy(text).into_owned()
                    })
                })
            }
        })
    }

    /// The plan, which the first call makes. None if SPI makes none.
    ///
    /// # Safety
    /// SPI must be connected.
    unsafe fn plan(&self) -> Option<pg_sys::SPIPlanPtr> {
        if self.plan.get().is_null() {
            let mut types = [pg_sys::OIDOID, pg_sys::TEXTOID];
            // SAFETY: connected, and as many types as are counted. An ERROR leaves no plan behind; a plan that is kept
            // does not live in the connection's memory.
            unsafe {
                let plan = pg_sys::SPI_prepare_cursor(
                    self.query.as_ptr(),
                    types.len() as i32,
                    types.as_mut_ptr(),
                    pg_sys::CURSOR_OPT_GENERIC_PLAN as i32,
                );
                if !plan.is_null() && pg_sys::SPI_keepplan(plan) == 0 {
                    self.plan.set(plan);
                }
            }
        }
        Some(self.plan.get()).filter(|plan| !plan.is_null())
    }
}

/// Calls `callback` whenever the definition of a table, a type or a schema may have changed, from now on. It must not
/// raise an ERROR and may not look anything up.
pub fn at_definition_change(callback: fn()) {
    let argument = pg_sys::Datum::from(callback as *const ());
    // SAFETY: functions of the right kinds, for the life of the process; the argument comes back as it was given.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), argument);
        for cache in [
            pg_sys::SysCacheIdentifier::NAMESPACEOID,
            pg_sys::SysCacheIdentifier::TYPEOID,
        ] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(catalog_changed), argument);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(callback: pg_sys::Datum, _relation: pg_sys::Oid) {
    // SAFETY: the function that `at_definition_change` was given.
    unsafe { std::mem::transmute::<*mut (), fn()>(callback.cast_mut_ptr())() }
}

#[pg_guard]
unsafe extern "C-unwind" fn catalog_changed(callback: pg_sys::Datum, _cache: i32, _hash: u32) {
    // SAFETY: as above.
    unsafe { std::mem::transmute::<*mut (), fn()>(callback.cast_mut_ptr())() }
}
