//! `ioengine=hidb-scan`: each op is a question, and ends when the last batch of its answer has come.
//!
//! Bytes are those of the answer; an op's place in the job's `size` only matters to `$key` in the predicate.

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use heliostat_client::{Client, ScanRequest, ScanText};
use heliostat_fio::engine::{Engine, EngineContext, EngineError, EngineFacts, EngineKind, EngineOption, Op};
use hidb::Error;

use super::answer::Expected;
use super::template::{Template, Values};
use super::{Options, QUESTIONS, client_options, connect};
use crate::engines::tasks::{Ask, TaskEngine, Tasks};

/// The scan engine.
pub struct HidbScan;

/// What both engines that ask questions take.
pub(super) const WHERE: EngineOption = EngineOption {
    name: "where",
    takes: "PREDICATE",
    default: "",
    help: "Which rows; $rand(from,to) and $key(from,to) in it are numbers that change from op to op",
};
pub(super) const COLUMNS: EngineOption =
    EngineOption { name: "columns", takes: "LIST", default: "", help: "Columns or expressions, all when left out" };
pub(super) const BYPASS_CACHE: EngineOption =
    EngineOption { name: "bypass_cache", takes: "0|1", default: "0", help: "The cell reads everything from its drive" };
pub(super) const EXPECT: EngineOption = EngineOption {
    name: "answer_digest",
    takes: "DIGEST|first",
    default: "",
    help: "Every answer must have it (first: that of the first one, which is printed); for a question that stays the same",
};

impl EngineKind for HidbScan {
    fn name(&self) -> &'static str {
        "hidb-scan"
    }

    fn help(&self) -> &'static str {
        "Questions to a cell: predicates, columns, aggregates"
    }

    fn facts(&self) -> EngineFacts {
        QUESTIONS
    }

    fn options(&self) -> &'static [EngineOption] {
        client_options![
            WHERE,
            COLUMNS,
            EXPECT,
            EngineOption { name: "aggregates", takes: "LIST", default: "", help: "Such as sum(l_quantity),count(*)" },
            EngineOption { name: "group_by", takes: "LIST", default: "", help: "Groups of the aggregates" },
            EngineOption { name: "order_by", takes: "LIST", default: "", help: "Such as l_orderkey desc" },
            EngineOption { name: "limit", takes: "ROWS", default: "", help: "Rows of the answer" },
            BYPASS_CACHE,
        ]
    }

    fn check(&self, options: &[(String, String)]) -> Result<(), String> {
        let options = Options(options);
        options.connection()?;
        predicate(options)?;
        question(options).map(drop)
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        let options = Options(&context.options);
        let text = question(options).map_err(|error| context.error(error))?;
        let (predicate, expected) = predicate(options).map_err(|error| context.error(error))?;
        let tasks = Tasks::new()?;
        let client = connect(context, &tasks)?;
        let (values, bypass_cache) = (Values::new(context.seed), context.is_on("bypass_cache"));
        let scans = Scans { client, text, predicate, values, bypass_cache, expected };
        Ok(Box::new(TaskEngine::new(scans, tasks)))
    }
}

/// The question of a job, without its predicate.
fn question(options: Options<'_>) -> Result<ScanText, String> {
    let list = |name| options.get(name).map(split).unwrap_or_default();
    Ok(ScanText {
        table: options.table()?.to_string(),
        select: list("columns"),
        aggregates: list("aggregates"),
        group_by: list("group_by"),
        order_by: list("order_by"),
        limit: options.parsed("limit")?,
        ..ScanText::default()
    })
}

/// The predicate of a job, and what its answers must be: one answer can only be expected of one question.
pub(super) fn predicate(options: Options<'_>) -> Result<(Option<Template>, Expected), String> {
    let predicate = options.get("where").map(Template::parse).transpose()?;
    let expected = options.parsed("answer_digest")?.unwrap_or_default();
    if !matches!(expected, Expected::Anything) && predicate.as_ref().is_some_and(Template::changes) {
        return Err("answer_digest: the answers change with the variables of where=; leave either out".into());
    }
    Ok((predicate, expected))
}

/// A list of SQL expressions: commas within brackets or quotes are not between items.
pub(super) fn split(list: &str) -> Vec<String> {
    let (mut items, mut depth, mut quote) = (vec![String::new()], 0u32, None);
    for letter in list.chars() {
        match (letter, quote) {
            (_, Some(end)) if letter == end => quote = None,
            (_, Some(_)) => {}
            ('\'' | '"', None) => quote = Some(letter),
            ('(', None) => depth += 1,
            (')', None) => depth = depth.saturating_sub(1),
            (',', None) if depth == 0 => {
                items.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(item) = items.last_mut() {
            item.push(letter);
        }
    }
    items.into_iter().map(|item| item.trim().to_string()).filter(|item| !item.is_empty()).collect()
}

/// The op's place in the job's distribution, counted in blocks.
pub(super) fn place(op: &Op) -> u64 {
    op.offset / u64::from(op.length.max(1))
}

struct Scans {
    client: Client,
    text: ScanText,
    predicate: Option<Template>,
    values: Values,
    bypass_cache: bool,
    expected: Expected,
}

impl Ask for Scans {
    fn ask(&mut self, op: &Op) -> LocalBoxFuture<'static, Result<u64, Error>> {
        let mut text = self.text.clone();
        text.filter = self.predicate.as_ref().map(|template| template.fill(&mut self.values, place(op)));
        let request = ScanRequest::text(text).bypass_cache(self.bypass_cache);
        let (client, expected) = (self.client.clone(), self.expected.clone());
        async move { expected.take(client.scan(request).await?).await }.boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_between_expressions_only() {
        assert_eq!(split("a, b+1 , sum(c, d),'x,y' , \"q,(\""), ["a", "b+1", "sum(c, d)", "'x,y'", "\"q,(\""]);
        assert!(split(" , ").is_empty());
    }
}
