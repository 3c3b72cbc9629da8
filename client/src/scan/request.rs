//! What is asked of a table, and how.
//!
//! Owns [`ScanRequest`]. Called by engines, and by the rooms beside it.

use std::time::{Duration, Instant};

use hidb::plan::ScanPlan;
use hidb::plan::sql::ScanText;
use hidb::{Result, plan, proto};

use crate::client::Client;

#[derive(Clone, Debug)]
pub(super) enum Question {
    Text(ScanText),
    Plan(Box<ScanPlan>),
    Substrait { table: String, bytes: Vec<u8> },
}

/// What is asked of one table, and how.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    question: Question,
    pub(super) timeout: Option<Duration>,
    pub(super) frames_ahead: Option<u32>,
    memory_bytes_max: u64,
    pub(super) bypass_cache: bool,
}

impl ScanRequest {
    fn of(question: Question) -> Self {
        ScanRequest { question, timeout: None, frames_ahead: None, memory_bytes_max: 0, bypass_cache: false }
    }

    /// All rows and columns of a table, to be narrowed down.
    pub fn table(name: impl Into<String>) -> Self {
        Self::text(ScanText { table: name.into(), ..ScanText::default() })
    }

    /// A question in pieces of text; typed against the table's schema by the client.
    pub fn text(text: ScanText) -> Self {
        Self::of(Question::Text(text))
    }

    /// A typed plan.
    pub fn plan(plan: ScanPlan) -> Self {
        Self::of(Question::Plan(Box::new(plan)))
    }

    /// A serialized `substrait.Plan` over one table.
    pub fn substrait(bytes: Vec<u8>) -> Result<Self> {
        let table = plan::substrait::table_name(&bytes)?;
        Ok(Self::of(Question::Substrait { table, bytes }))
    }

    fn map_text(mut self, change: impl FnOnce(&mut ScanText)) -> Self {
        if let Question::Text(text) = &mut self.question {
            change(text);
        }
        self
    }

    /// Keeps rows for which this SQL predicate is true. For questions in text.
    pub fn filter(self, predicate: impl Into<String>) -> Self {
        self.map_text(|text| text.filter = Some(predicate.into()))
    }

    /// Returns these columns or expressions (`a`, `a * b as c`). For questions in text.
    pub fn select<S: Into<String>>(self, items: impl IntoIterator<Item = S>) -> Self {
        self.map_text(|text| text.select = items.into_iter().map(Into::into).collect())
    }

    /// Aggregates, such as `sum(a * b) as revenue`. For questions in text.
    pub fn aggregates<S: Into<String>>(self, items: impl IntoIterator<Item = S>) -> Self {
        self.map_text(|text| text.aggregates = items.into_iter().map(Into::into).collect())
    }

    /// Groups by these. For questions in text.
    pub fn group_by<S: Into<String>>(self, items: impl IntoIterator<Item = S>) -> Self {
        self.map_text(|text| text.group_by = items.into_iter().map(Into::into).collect())
    }

    /// Sorts by these (`a desc nulls last`). For questions in text.
    pub fn order_by<S: Into<String>>(self, items: impl IntoIterator<Item = S>) -> Self {
        self.map_text(|text| text.order_by = items.into_iter().map(Into::into).collect())
    }

    /// Keeps this many rows. For questions in text.
    pub fn limit(self, rows: u64) -> Self {
        self.map_text(|text| text.limit = Some(rows))
    }

    /// A deadline from now until the last batch was taken, in place of the client's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Result frames the cell may send ahead of the consumer, in place of the client's.
    pub fn frames_ahead(mut self, frames: u32) -> Self {
        self.frames_ahead = Some(frames.max(1));
        self
    }

    /// A memory budget on the cell lower than its own limit.
    pub fn memory_bytes_max(mut self, bytes: u64) -> Self {
        self.memory_bytes_max = bytes;
        self
    }

    /// Reads every chunk from the device, for benchmarks; nor is the answer taken from the client's cache, or kept there.
    pub fn bypass_cache(mut self, bypass: bool) -> Self {
        self.bypass_cache = bypass;
        self
    }

    pub(super) fn table_name(&self) -> &str {
        match &self.question {
            Question::Text(text) => &text.table,
            Question::Plan(plan) => &plan.table,
            Question::Substrait { table, .. } => table,
        }
    }

    /// The question as it is put to the cell, typed against the table's schema as the client knows it.
    pub(super) async fn message(
        &self,
        client: &Client,
        deadline: Option<Instant>,
        explain: bool,
    ) -> Result<proto::PredicatePushdownRequest> {
        let table = self.table_name().to_string();
        let (substrait_plan, schema_hash) = match &self.question {
            Question::Text(text) => {
                let schema = client.schema(&table).await?;
                let plan = plan::sql::parse_scan(text, &schema)?;
                (plan::substrait::to_substrait(&plan, &schema), schema.hash())
            }
            Question::Plan(plan) => {
                let schema = client.schema(&table).await?;
                (plan::substrait::to_substrait(plan, &schema), schema.hash())
            }
            Question::Substrait { bytes, .. } => (bytes.clone(), 0),
        };
        Ok(proto::PredicatePushdownRequest {
            table,
            schema_hash,
            substrait_plan: substrait_plan.into(),
            timeout_ms: milliseconds_until(deadline),
            initial_credits: self.frames_ahead.unwrap_or(client.options().result_frames_ahead),
            explain,
            memory_bytes_max: self.memory_bytes_max,
            bypass_cache: self.bypass_cache,
        })
    }
}

/// What is left until a deadline, as requests carry it; 0: there is none.
pub(crate) fn milliseconds_until(deadline: Option<Instant>) -> u64 {
    deadline.map_or(0, |deadline| (deadline.saturating_duration_since(Instant::now()).as_millis() as u64).max(1))
}
