//! FSST: text as codes of one byte, each of which stands for one to eight bytes (Boncz, Neumann, Leis: FSST, VLDB 2020).
//!
//! `decode` reads codes, `search` tells from them which rows can match. Called by `text`.

pub(crate) mod decode;
pub(crate) mod search;
