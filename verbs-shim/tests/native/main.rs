//! The provider `soft` on this machine's own network stack: loopback, two network namespaces, faults.

mod faults;
mod runtimes;
mod suite;
