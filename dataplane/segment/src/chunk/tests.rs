//! Chunk tests.
