//! Engines whose system under test is not there yet. They have their names, and say so.

use heliostat_fio::engine::{Engine, EngineContext, EngineError, EngineFacts, EngineKind};

/// An engine that is not built yet.
pub struct Unbuilt {
    name: &'static str,
    help: &'static str,
    why: &'static str,
}

/// Nearest neighbours, which come with vector search.
pub const HIDB_SEARCH: Unbuilt = Unbuilt {
    name: "hidb-search",
    help: "Nearest neighbours from a cell (not built yet: comes with vector search)",
    why: "hidb-search is not built yet: it comes with vector search in the cell",
};

impl EngineKind for Unbuilt {
    fn name(&self) -> &'static str {
        self.name
    }

    fn help(&self) -> &'static str {
        self.help
    }

    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: false, stores: false, writes: false, one_at_a_time: false, survives_errors: false }
    }

    fn check(&self, _options: &[(String, String)]) -> Result<(), String> {
        Err(self.why.into())
    }

    fn open(&self, _context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        Err(EngineError::Other(self.why.into()))
    }
}
