//! `ioengine=hidb-load`: each op is a batch of rows of a load, and ends when the client has taken it over.
//!
//! Batches come from a TPC-H generator or from files, are decoded before the job starts, and are sent again and again. The
//! client takes a batch as long as not more than 512 MiB wait to become durable; past that, an op ends when the cell has written
//! older ones, so that over a run the rate is that of durable rows. With `iodepth=1`: a load is in order.
//!
//! A load that failed is over, and so is the job: the cell forgets it.
//!
//! When the job ends the load is committed (`commit=1`), or given up, which leaves nothing behind.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use arrow_array::{Array, ArrayRef, RecordBatch};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use heliostat_client::input::{Input, InputOptions, TpchTable};
use heliostat_client::{LoadMode, LoadWriter};
use heliostat_fio::engine::{Engine, EngineContext, EngineError, EngineFacts, EngineKind, EngineOption, Op};
use hidb::{Error, ErrorCode};

use super::{Options, client_options, connect};
use crate::engines::tasks::{Ask, TaskEngine, Tasks};

/// Bytes of batches that are kept to be sent again and again.
const ROWS_BYTES_MAX: u64 = 256 << 20;

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
        EngineFacts { uses_files: false, stores: false, writes: true, one_at_a_time: true, survives_errors: false }
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

    fn check(&self, options: &[(String, String)]) -> Result<(), String> {
        let options = Options(options);
        options.connection()?;
        options.table()?;
        mode(options)?;
        options.parsed::<f64>("scale")?;
        match (options.parsed::<TpchTable>("tpch")?, options.get("source")) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            _ => Err("hidb-load takes its rows from tpch= or from source=: give one of them".into()),
        }
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        if context.reads {
            return Err(context.error("hidb-load only writes: say rw=write"));
        }
        let options = Options(&context.options);
        let mode = mode(options).map_err(|error| context.error(error))?;
        let table = options.table().map_err(|error| context.error(error))?;
        let input = match options.parsed::<TpchTable>("tpch").map_err(|error| context.error(error))? {
            Some(table) => {
                let scale = options.parsed("scale").map_err(|error| context.error(error))?.unwrap_or(0.1);
                Input::tpch(table, scale, InputOptions::default())
            }
            None => {
                let file = options.get("source").map(PathBuf::from);
                Input::open(&file.into_iter().collect::<Vec<_>>(), InputOptions::default())
            }
        };
        let input = input.map_err(|error| context.error(error))?;
        let schema = input.schema().clone();
        let batches = rows(context, input)?;
        let tasks = Tasks::new()?;
        let client = connect(context, &tasks)?;
        let writer = tasks.run(client.load(table, &schema, mode))?;
        let writer = Rc::new(RefCell::new(Some(writer)));
        let load = Load { writer, batches, next: 0, commits: context.is_on("commit") };
        Ok(Box::new(TaskEngine::new(load, tasks)))
    }
}

fn mode(options: Options<'_>) -> Result<LoadMode, String> {
    match options.get("mode").unwrap_or("create") {
        "create" => Ok(LoadMode::Create),
        "append" => Ok(LoadMode::Append),
        "replace" => Ok(LoadMode::Replace),
        other => Err(format!("mode={other}: create, append or replace")),
    }
}

/// The first batches of the input.
fn rows(context: &EngineContext, input: Input) -> Result<Vec<RecordBatch>, EngineError> {
    let (mut batches, mut bytes) = (Vec::new(), 0);
    for batch in input.batches().map_err(|error| context.error(error))? {
        let batch = batch.map_err(|error| context.error(error))?.rows;
        bytes += bytes_of(&batch);
        batches.push(batch);
        if bytes >= ROWS_BYTES_MAX {
            break;
        }
    }
    match batches.is_empty() {
        true => Err(context.error("the input has no rows")),
        false => Ok(batches),
    }
}

/// Bytes of its rows, without what its buffers hold of other batches.
fn bytes_of(batch: &RecordBatch) -> u64 {
    let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0) as u64;
    batch.columns().iter().map(bytes).sum()
}

struct Load {
    /// `None` while an op has it.
    writer: Rc<RefCell<Option<LoadWriter>>>,
    batches: Vec<RecordBatch>,
    next: usize,
    commits: bool,
}

impl Ask for Load {
    fn ask(&mut self, _op: &Op) -> LocalBoxFuture<'static, Result<u64, Error>> {
        let (batch, place) = (self.batches[self.next].clone(), self.writer.clone());
        self.next = (self.next + 1) % self.batches.len();
        async move {
            let busy = || Error::new(ErrorCode::Internal, "two batches at once");
            let mut writer = place.borrow_mut().take().ok_or_else(busy)?;
            let written = writer.write(&batch).await;
            *place.borrow_mut() = Some(writer);
            written.map(|()| bytes_of(&batch))
        }
        .boxed_local()
    }

    fn finish(&mut self) -> LocalBoxFuture<'static, Result<(), Error>> {
        let (writer, commits) = (self.writer.borrow_mut().take(), self.commits);
        async move {
            match writer {
                Some(mut writer) if commits => writer.commit().await.map(drop),
                Some(writer) => writer.abort().await,
                // A batch was given up in mid-way: the cell forgets the load in time.
                None => Ok(()),
            }
        }
        .boxed_local()
    }
}
