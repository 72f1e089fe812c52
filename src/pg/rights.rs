//! With whose rights a worker's transactions run.
//!
//! A worker connects as the bootstrap superuser, because a role that cannot log in cannot connect before PostgreSQL 17. It
//! gives these rights up before its first statement: its session belongs to another role from then on, and within a
//! transaction `set role` and `set session authorization` are refused as in a security definer function. What has to do
//! more is a function of the extension's owner.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::pg_sys::{self, AsPgCStr, Oid};
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

thread_local! {
    /// The role of this process's transactions; invalid for an ordinary session, whose rights are its own.
    static ROLE: Cell<Oid> = const { Cell::new(pg_sys::InvalidOid) };
}

/// Role of a worker where no other is set.
pub const WORKER: &str = "jetstream_worker";

/// Why a worker cannot have the rights of a role, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No such role.
    #[error("does not exist")]
    Missing,
    /// It does not have the rights of `jetstream_worker`.
    #[error("does not have the rights of jetstream_worker")]
    NoMember,
}

/// A role that a worker can run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    oid: Oid,
    superuser: bool,
}

/// The role of this name, if a worker can work with its rights. To be called in a transaction of a process with a database.
pub fn usable(name: &str) -> Result<Role, Unusable> {
    let oid = oid_of(name).ok_or(Unusable::Missing)?;
    let worker = oid_of(WORKER).ok_or(Unusable::NoMember)?;
    // SAFETY: looks up the catalog.
    unsafe {
        if !pg_sys::has_privs_of_role(oid, worker) {
            return Err(Unusable::NoMember);
        }
        Ok(Role {
            oid,
            superuser: pg_sys::superuser_arg(oid),
        })
    }
}

fn oid_of(name: &str) -> Option<Oid> {
    let name = CString::new(name).ok()?;
    // SAFETY: looks up the catalog; a role that does not exist is not an ERROR.
    let oid = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// `pg_read_all_settings` (`pg_authid.dat`), whose constant has another name in PostgreSQL 13.
const READ_ALL_SETTINGS: u32 = 3374;

/// A role of PostgreSQL's own that may do nothing of use to a process without a database.
pub fn powerless() -> Role {
    Role {
        oid: Oid::from(READ_ALL_SETTINGS),
        superuser: false,
    }
}

/// Gives this process the rights of a role, and no others, from its next transaction on. To be called outside a transaction,
/// in a background worker.
pub fn become_role(role: Role) {
    // SAFETY: a background worker is authenticated as the bootstrap superuser, who may be anybody.
    unsafe { pg_sys::SetSessionAuthorization(role.oid, role.superuser) };
    ROLE.set(role.oid);
}

/// At the begin of each transaction: nothing in it can take other rights.
pub(super) fn enter() {
    set(pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
}

/// After the end of each transaction, deferred triggers included. PostgreSQL expects no restriction between transactions.
pub(super) fn leave() {
    set(0);
}

fn set(context: i32) {
    let role = ROLE.get();
    if role != pg_sys::InvalidOid {
        // SAFETY: PostgreSQL itself puts back, at an ERROR, what was in force when the transaction began.
        unsafe { pg_sys::SetUserIdAndSecContext(role, context) }
    }
}

/// Defines a setting that names such a role. A statement that sets it is refused where the role would be; from a file it is
/// taken as it is, because there may be no transaction to look into the catalogs.
pub fn define_setting(name: &'static CStr, about: &'static CStr, setting: &'static GucSetting<Option<CString>>) {
    // SAFETY: the hook takes what PostgreSQL gives such hooks.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            name,
            about,
            c"",
            setting,
            GucContext::Sighup,
            GucFlags::empty(),
            Some(check_setting),
            None,
            None,
        );
    }
}

/// # Safety
///
/// Called by PostgreSQL with a new value, which is null or a C string.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn check_setting(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as above. A parallel worker takes what its leader has. The texts are PostgreSQL's to free.
    unsafe {
        if (*value).is_null()
            || !pg_sys::IsTransactionState()
            || pg_sys::MyDatabaseId == pg_sys::InvalidOid
            || pg_sys::InitializingParallelWorker
        {
            return true;
        }
        let name = CStr::from_ptr(*value).to_string_lossy().trim().to_owned();
        // Before the first extension there is no role whose rights it could have.
        if name.is_empty() || oid_of(WORKER).is_none() && oid_of(&name).is_some() {
            return true;
        }
        let Err(why) = usable(&name) else { return true };
        let hint = match why {
            Unusable::Missing => "Create the role first.".to_owned(),
            Unusable::NoMember => format!("Run: grant {WORKER} to \"{name}\""),
        };
        pg_sys::GUC_check_errdetail_string = format!("Role \"{name}\" {why}.").as_pg_cstr();
        pg_sys::GUC_check_errhint_string = hint.as_pg_cstr();
        false
    }
}
