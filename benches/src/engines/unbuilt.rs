//! Engines whose system under test is not there yet. They have their names, and say so.

use heliostat_fio::engine::{Engine, EngineContext, EngineError, EngineFacts, EngineKind};

/// `nvme_cmd`: NVMe passthrough, which comes with the scan engine's device path.
pub struct NvmeCommand;

impl EngineKind for NvmeCommand {
    fn name(&self) -> &'static str {
        "nvme_cmd"
    }

    fn help(&self) -> &'static str {
        "NVMe passthrough (not built yet: comes with the scan engine)"
    }

    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: false, stores: false, writes: false, one_at_a_time: false, survives_errors: false }
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        let text =
            "nvme_cmd is not built yet: it comes with the scan engine's NVMe passthrough; use io_uring or glommio";
        Err(EngineError::Other(format!("job {}: {text}", context.job)))
    }
}

/// `hidb-search`: nearest neighbours, which come with vector search.
pub struct HidbSearch;

impl EngineKind for HidbSearch {
    fn name(&self) -> &'static str {
        "hidb-search"
    }

    fn help(&self) -> &'static str {
        "Nearest neighbours from a cell (not built yet: comes with vector search)"
    }

    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: false, stores: false, writes: false, one_at_a_time: false, survives_errors: true }
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        let text = "hidb-search is not built yet: it comes with vector search in the cell";
        Err(EngineError::Other(format!("job {}: {text}", context.job)))
    }
}
