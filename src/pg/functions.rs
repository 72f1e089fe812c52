//! The functions that sql/outbox.sql names by their symbols. They are not made by pgrx, whose wrappers would copy the row
//! or its values.

use pgrx::{pg_guard, pg_sys};

use super::enqueue::Call;
use super::row::RowTrigger;
use crate::enqueue::{self, Body};

/// Says how PostgreSQL is to call a function: by version 1 of its interface.
macro_rules! callable {
    ($($info:ident),*) => {
        $(
            #[doc = "How PostgreSQL is to call the function of this name."]
            #[unsafe(no_mangle)]
            pub extern "C" fn $info() -> &'static pg_sys::Pg_finfo_record {
                const INFO: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
                &INFO
            }
        )*
    };
}

callable!(
    pg_finfo_outbox_check,
    pg_finfo_jetstream_publish,
    pg_finfo_jetstream_publish_raw,
    pg_finfo_jetstream_publish_batch
);

/// The trigger `outbox_check`: see [`enqueue::check_row`].
///
/// # Safety
///
/// `call` is a call as PostgreSQL makes them.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn outbox_check(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as above.
    let trigger = unsafe { RowTrigger::new(call) };
    enqueue::check_row(&trigger);
    trigger.result()
}

/// `jetstream.publish`: see [`enqueue::publish`].
///
/// # Safety
///
/// As for [`outbox_check`].
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn jetstream_publish(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as above.
    pg_sys::Datum::from(enqueue::publish(&unsafe { Call::new(call) }, Body::Json))
}

/// `jetstream.publish_raw`: see [`enqueue::publish`].
///
/// # Safety
///
/// As for [`outbox_check`].
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn jetstream_publish_raw(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as above.
    pg_sys::Datum::from(enqueue::publish(&unsafe { Call::new(call) }, Body::Bytes))
}

/// `jetstream.publish_batch`: see [`enqueue::publish_batch`].
///
/// # Safety
///
/// As for [`outbox_check`].
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn jetstream_publish_batch(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as above.
    let call = unsafe { Call::new(call) };
    call.return_set(&enqueue::publish_batch(&call))
}
