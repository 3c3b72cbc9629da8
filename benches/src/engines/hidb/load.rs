//! `ioengine=hidb-load`: each op is a batch of rows of a load, and ends when the client has taken it over.
//!
//! Batches come from a TPC-H generator or from files, are decoded before the job starts, and are sent again and again. The
//! client takes a batch as long as not more than 512 MiB wait to become durable; past that, an op ends when the cell has written
//! older ones, so that over a run the rate is that of durable rows. With `iodepth=1`: a load is in order.
//!
//! When the job ends the load is committed (`commit=1`), or given up, which leaves nothing behind.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use arrow_array::RecordBatch;
use heliostat_client::input::{Input, InputOptions, TpchTable};
use heliostat_client::{LoadMode, LoadWriter};
use heliostat_fio::engine::{
    Completion, Engine, EngineContext, EngineError, EngineFacts, EngineKind, EngineOption, Op,
};
use hidb::{Error, ErrorCode};

use super::{client_options, connect, parsed, table, wrong};
use crate::engines::tasks::Tasks;

/// Bytes of batches that are kept to be sent again and again.
const ROWS_BYTES_MAX: usize = 256 << 20;

/// The load engine.
pub struct HidbLoad;

impl EngineKind for HidbLoad {
    fn name(&self) -> &'static str {
        "hidb-load"
    }

    fn help(&self) -> &'static str {
        "Loads batches of rows into a table"
    }

    fn facts(&self) -> EngineFacts {
        EngineFacts { uses_files: false, stores: false, writes: true, one_at_a_time: true, survives_errors: true }
    }

    fn options(&self) -> &'static [EngineOption] {
        client_options![
            EngineOption { name: "tpch", takes: "TABLE", default: "", help: "Generate rows of this TPC-H table" },
            EngineOption { name: "scale", takes: "FACTOR", default: "0.1", help: "Scale factor of the generator" },
            EngineOption { name: "source", takes: "FILE", default: "", help: "Rows of a Parquet, Arrow or CSV file" },
            EngineOption {
                name: "mode",
                takes: "create|append|replace",
                default: "create",
                help: "What happens to the table; clones of a job each need a table of their own, or append",
            },
            EngineOption { name: "commit", takes: "0|1", default: "0", help: "Make the rows visible at the end" },
        ]
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        if context.reads {
            return Err(wrong(context, "hidb-load only writes: say rw=write"));
        }
        let mode = match context.option("mode").unwrap_or("create") {
            "create" => LoadMode::Create,
            "append" => LoadMode::Append,
            "replace" => LoadMode::Replace,
            other => return Err(wrong(context, format_args!("mode={other}: create, append or replace"))),
        };
        let input = input(context)?;
        let schema = input.schema().clone();
        let batches = rows(context, input)?;
        let tasks = Tasks::new()?;
        let client = connect(context, &tasks)?;
        let writer = tasks.run(client.load(table(context)?, &schema, mode))?;
        let writer = Rc::new(RefCell::new(Some(writer)));
        Ok(Box::new(LoadEngine { tasks, writer, batches, next: 0, commits: context.is_on("commit") }))
    }
}

fn input(context: &EngineContext) -> Result<Input, EngineError> {
    let opened = match (context.option("tpch"), context.option("source")) {
        (Some(name), None) => {
            let table: TpchTable =
                name.parse().map_err(|error| wrong(context, format_args!("tpch={name}: {error}")))?;
            Input::tpch(table, parsed(context, "scale")?.unwrap_or(0.1), InputOptions::default())
        }
        (None, Some(file)) => Input::open(&[PathBuf::from(file)], InputOptions::default()),
        _ => return Err(wrong(context, "hidb-load takes its rows from tpch= or from source=: give one of them")),
    };
    opened.map_err(|error| wrong(context, error))
}

/// The first batches of the input.
fn rows(context: &EngineContext, input: Input) -> Result<Vec<RecordBatch>, EngineError> {
    let (mut batches, mut bytes) = (Vec::new(), 0);
    for batch in input.batches().map_err(|error| wrong(context, error))? {
        let batch = batch.map_err(|error| wrong(context, error))?.rows;
        bytes += batch.get_array_memory_size();
        batches.push(batch);
        if bytes >= ROWS_BYTES_MAX {
            break;
        }
    }
    match batches.is_empty() {
        true => Err(wrong(context, "the input has no rows")),
        false => Ok(batches),
    }
}

struct LoadEngine {
    tasks: Tasks,
    /// `None` while an op has it.
    writer: Rc<RefCell<Option<LoadWriter>>>,
    batches: Vec<RecordBatch>,
    next: usize,
    commits: bool,
}

impl Engine for LoadEngine {
    fn submit(&mut self, ops: &[Op]) -> Result<usize, EngineError> {
        for op in ops {
            let (batch, place) = (self.batches[self.next].clone(), self.writer.clone());
            self.next = (self.next + 1) % self.batches.len();
            self.tasks.start(op.slot, async move {
                let busy = || Error::new(ErrorCode::Internal, "two batches at once");
                let mut writer = place.borrow_mut().take().ok_or_else(busy)?;
                let written = writer.write(&batch).await;
                *place.borrow_mut() = Some(writer);
                written.map(|()| batch.get_array_memory_size() as u64)
            });
        }
        Ok(ops.len())
    }

    fn complete(
        &mut self,
        min: usize,
        max: usize,
        timeout: Duration,
        completions: &mut Vec<Completion>,
    ) -> Result<(), EngineError> {
        self.tasks.complete(min, max, timeout, completions);
        Ok(())
    }

    fn buffer(&mut self, _slot: u32) -> &mut [u8] {
        &mut []
    }

    fn error_text(&self, outcome: i64) -> String {
        self.tasks.error_text(outcome)
    }
}

impl Drop for LoadEngine {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.borrow_mut().take() else { return };
        let ended = match self.commits {
            true => self.tasks.run(async { writer.commit().await.map(drop) }),
            false => self.tasks.run(writer.abort()),
        };
        if let Err(error) = ended {
            eprintln!("hidb-load: ending the load failed: {error}");
        }
    }
}
