//! Loading libibverbs and librdmacm at run time: a table of functions each, filled once per process.
//!
//! Owns: the two tables. They are never unloaded, so that every object made through them may hold a `&'static`.
//!
//! Invariants
//! - A program with this crate starts without either library; whoever asks for one that is not there gets
//!   [`Error::NoLibrary`].
//! - Symbols are taken by name *and version*: a libibverbs exports most names twice, and the elder interface
//!   (IBVERBS_1.0) has other structures.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use super::abi::*;
use super::cm::abi::*;
use crate::Error;

/// Why a library is not there.
#[derive(Debug, Clone)]
pub(super) struct LoadFailure {
    library: &'static str,
    reason: String,
    package: &'static str,
}

impl From<&LoadFailure> for Error {
    fn from(failure: &LoadFailure) -> Error {
        let LoadFailure { library, reason, package } = failure.clone();
        Error::NoLibrary { library, reason, package }
    }
}

macro_rules! library {
    (
        $(#[$doc:meta])* $table:ident, $file:literal, $package:literal;
        $($field:ident = $symbol:literal @ $version:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*
    ) => {
        $(#[$doc])*
        pub(super) struct $table {
            $(pub $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $table {
            /// The table, loaded at the first call.
            pub(super) fn get() -> Result<&'static $table, &'static LoadFailure> {
                static TABLE: OnceLock<Result<$table, LoadFailure>> = OnceLock::new();
                TABLE.get_or_init(|| $table::load($file)).as_ref()
            }

            pub(super) fn load(file: &'static str) -> Result<$table, LoadFailure> {
                let fail = |reason| LoadFailure { library: file, reason, package: $package };
                let library = open(file).map_err(fail)?;
                Ok($table {
                    $($field: {
                        let address = symbol(library, concat!($symbol, "\0"), concat!($version, "\0")).map_err(fail)?;
                        // SAFETY: the symbol of this name and version is a function of this type, by the header
                        // that the library is made with.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(address)
                        }
                    },)*
                })
            }
        }
    };
}

library! {
    /// libibverbs. Posting and polling are not here: they go through `ibv_context_ops`.
    Verbs, "libibverbs.so.1", "libibverbs1 ibverbs-providers";
    get_device_list = "ibv_get_device_list" @ "IBVERBS_1.1": fn(*mut c_int) -> *mut *mut ibv_device;
    free_device_list = "ibv_free_device_list" @ "IBVERBS_1.1": fn(*mut *mut ibv_device);
    get_device_name = "ibv_get_device_name" @ "IBVERBS_1.1": fn(*mut ibv_device) -> *const c_char;
    open_device = "ibv_open_device" @ "IBVERBS_1.1": fn(*mut ibv_device) -> *mut ibv_context;
    close_device = "ibv_close_device" @ "IBVERBS_1.1": fn(*mut ibv_context) -> c_int;
    query_device = "ibv_query_device" @ "IBVERBS_1.1": fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    query_port = "ibv_query_port" @ "IBVERBS_1.1": fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    alloc_pd = "ibv_alloc_pd" @ "IBVERBS_1.1": fn(*mut ibv_context) -> *mut ibv_pd;
    dealloc_pd = "ibv_dealloc_pd" @ "IBVERBS_1.1": fn(*mut ibv_pd) -> c_int;
    reg_mr = "ibv_reg_mr" @ "IBVERBS_1.1": fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    dereg_mr = "ibv_dereg_mr" @ "IBVERBS_1.1": fn(*mut ibv_mr) -> c_int;
    create_comp_channel = "ibv_create_comp_channel" @ "IBVERBS_1.0": fn(*mut ibv_context) -> *mut ibv_comp_channel;
    destroy_comp_channel = "ibv_destroy_comp_channel" @ "IBVERBS_1.0": fn(*mut ibv_comp_channel) -> c_int;
    create_cq = "ibv_create_cq" @ "IBVERBS_1.1":
        fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    destroy_cq = "ibv_destroy_cq" @ "IBVERBS_1.1": fn(*mut ibv_cq) -> c_int;
    get_cq_event = "ibv_get_cq_event" @ "IBVERBS_1.1":
        fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ack_cq_events = "ibv_ack_cq_events" @ "IBVERBS_1.1": fn(*mut ibv_cq, c_uint);
    create_srq = "ibv_create_srq" @ "IBVERBS_1.1": fn(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
    destroy_srq = "ibv_destroy_srq" @ "IBVERBS_1.1": fn(*mut ibv_srq) -> c_int;
    create_qp = "ibv_create_qp" @ "IBVERBS_1.1": fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    destroy_qp = "ibv_destroy_qp" @ "IBVERBS_1.1": fn(*mut ibv_qp) -> c_int;
    modify_qp = "ibv_modify_qp" @ "IBVERBS_1.1": fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    query_qp = "ibv_query_qp" @ "IBVERBS_1.1":
        fn(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int;
}

library! {
    /// librdmacm, as much as it takes to connect queue pairs that it has not made.
    ConnectionManager, "librdmacm.so.1", "librdmacm1";
    create_event_channel = "rdma_create_event_channel" @ "RDMACM_1.0": fn() -> *mut rdma_event_channel;
    destroy_event_channel = "rdma_destroy_event_channel" @ "RDMACM_1.0": fn(*mut rdma_event_channel);
    create_id = "rdma_create_id" @ "RDMACM_1.0":
        fn(*mut rdma_event_channel, *mut *mut rdma_cm_id, *mut c_void, c_int) -> c_int;
    destroy_id = "rdma_destroy_id" @ "RDMACM_1.0": fn(*mut rdma_cm_id) -> c_int;
    bind_addr = "rdma_bind_addr" @ "RDMACM_1.0": fn(*mut rdma_cm_id, *mut libc::sockaddr) -> c_int;
    listen = "rdma_listen" @ "RDMACM_1.0": fn(*mut rdma_cm_id, c_int) -> c_int;
    resolve_addr = "rdma_resolve_addr" @ "RDMACM_1.0":
        fn(*mut rdma_cm_id, *mut libc::sockaddr, *mut libc::sockaddr, c_int) -> c_int;
    resolve_route = "rdma_resolve_route" @ "RDMACM_1.0": fn(*mut rdma_cm_id, c_int) -> c_int;
    init_qp_attr = "rdma_init_qp_attr" @ "RDMACM_1.2": fn(*mut rdma_cm_id, *mut ibv_qp_attr, *mut c_int) -> c_int;
    connect = "rdma_connect" @ "RDMACM_1.0": fn(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
    accept = "rdma_accept" @ "RDMACM_1.0": fn(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
    reject = "rdma_reject" @ "RDMACM_1.0": fn(*mut rdma_cm_id, *const c_void, u8) -> c_int;
    establish = "rdma_establish" @ "RDMACM_1.2": fn(*mut rdma_cm_id) -> c_int;
    disconnect = "rdma_disconnect" @ "RDMACM_1.0": fn(*mut rdma_cm_id) -> c_int;
    migrate_id = "rdma_migrate_id" @ "RDMACM_1.0": fn(*mut rdma_cm_id, *mut rdma_event_channel) -> c_int;
    get_cm_event = "rdma_get_cm_event" @ "RDMACM_1.0":
        fn(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
    ack_cm_event = "rdma_ack_cm_event" @ "RDMACM_1.0": fn(*mut rdma_cm_event) -> c_int;
}

fn last_message() -> String {
    // SAFETY: `dlerror` returns null or a string that stays until the next call of this thread.
    unsafe {
        let message = libc::dlerror();
        if message.is_null() { "no reason given".into() } else { CStr::from_ptr(message).to_string_lossy().into() }
    }
}

fn open(file: &str) -> Result<*mut c_void, String> {
    let name = std::ffi::CString::new(file).map_err(|_| "its name contains a zero".to_string())?;
    // SAFETY: the string ends with a zero; the initialisers of these two libraries need nothing from us.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() { Err(last_message()) } else { Ok(library) }
}

fn symbol(library: *mut c_void, name: &'static str, version: &'static str) -> Result<*mut c_void, String> {
    debug_assert!(name.ends_with('\0') && version.ends_with('\0'));
    #[cfg(target_env = "gnu")]
    // SAFETY: the library is open, and both strings end with a zero.
    let mut address = unsafe { libc::dlvsym(library, name.as_ptr().cast(), version.as_ptr().cast()) };
    #[cfg(not(target_env = "gnu"))]
    let mut address = std::ptr::null_mut::<c_void>();
    if address.is_null() {
        // A build without symbol versions has the present interface only.
        // SAFETY: as above.
        address = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
    }
    if address.is_null() { Err(last_message()) } else { Ok(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_a_typed_error() {
        let failure = Verbs::load("libibverbs-that-is-not-there.so.1").err().unwrap();
        let text = Error::from(&failure).to_string();
        assert!(text.contains("libibverbs-that-is-not-there.so.1 cannot be loaded"), "{text}");
        assert!(text.contains("Debian: libibverbs1 ibverbs-providers"), "{text}");
    }

    #[test]
    fn a_library_without_the_symbols_is_a_typed_error() {
        assert!(Verbs::load("libc.so.6").err().unwrap().reason.contains("ibv_get_device_list"));
    }

    /// Where the libraries are installed, every symbol is found; where they are not, the reason says so.
    #[test]
    fn the_installed_libraries_load_or_say_why_not() {
        for failure in [Verbs::get().err(), ConnectionManager::get().err()].into_iter().flatten() {
            assert!(failure.reason.contains("cannot open shared object file"), "{}", failure.reason);
        }
    }
}
