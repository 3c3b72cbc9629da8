//! Who may connect to a real cell, and what they may do there: every way in that must be shut, and those that are open.

#[path = "../cell/mod.rs"]
mod cell;
mod entry;
mod fixture;
mod links;
mod permissions;
mod users;
