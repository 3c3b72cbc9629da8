//! The protobuf messages, generated from `proto/hidb/v1/hidb.proto`; the comments are there.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("hidb.v1");
