//! `ioengine=hidb-search`: each op looks for nearest neighbours, and ends when the last batch of its answer has come.
//!
//! Queries are the vectors of a file, or rows of the table drawn by the job's seed; which is next follows the job's pattern:
//! in turn with `rw=read`, anywhere with `rw=randread`, some of them often with `random_distribution`. Bytes are those of
//! the answer. What the searches say that they did is in the report, and so is recall when `recall_sample` asks for it: it is
//! measured after the job, by asking for the same queries once as the job does and once exactly.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use heliostat_client::{Accuracy, Client, NEIGHBOURS_MAX};
use heliostat_fio::engine::{
    Engine, EngineContext, EngineError, EngineFacts, EngineKind, EngineOption, Figure, Findings, Op,
};
use hidb::Error;

use super::scan::{BYPASS_CACHE, WHERE, place, split};
use super::template::{Template, Values};
use super::{Options, QUESTIONS, client_options, connect};
use crate::engines::tasks::{Ask, TaskEngine, Tasks};
use crate::search::{Counts, EXACT_QUERIES_PER_REQUEST, Pool, Question, Written, mean_recall, neighbours, take};

/// Neighbours of a vector when nothing is said.
const K: u32 = 10;

/// Rows that are drawn as queries when nothing is said.
const QUERY_ROWS: usize = 1000;

/// The search engine.
pub struct HidbSearch;

impl EngineKind for HidbSearch {
    fn name(&self) -> &'static str {
        "hidb-search"
    }

    fn help(&self) -> &'static str {
        "Nearest neighbours from a cell"
    }

    fn facts(&self) -> EngineFacts {
        QUESTIONS
    }

    fn options(&self) -> &'static [EngineOption] {
        client_options![
            EngineOption {
                name: "column",
                takes: "NAME",
                default: "",
                help: "The column of vectors; left out: the only one",
            },
            EngineOption { name: "k", takes: "NUMBER", default: "10", help: "Neighbours of each vector" },
            EngineOption {
                name: "recall",
                takes: "PART",
                default: "0.95",
                help: "Find at least this part of the true neighbours, as the index was calibrated",
            },
            EngineOption { name: "probes", takes: "LISTS", default: "", help: "Lists of an IVF index to look into" },
            EngineOption { name: "ef", takes: "NUMBER", default: "", help: "Candidates on the way through a graph" },
            EngineOption { name: "exact", takes: "0|1", default: "0", help: "Compare every vector" },
            EngineOption {
                name: "metric",
                takes: "l2|ip|cosine|hamming",
                default: "",
                help: "How far two vectors are; left out: as the index has it",
            },
            WHERE,
            EngineOption { name: "columns", takes: "LIST", default: "_rowid", help: "Columns of the answer" },
            EngineOption {
                name: "queries",
                takes: "FILE",
                default: "",
                help: "Query vectors: .npy, .fvecs, .bvecs or JSON; left out: rows of the table",
            },
            EngineOption {
                name: "query_rows",
                takes: "NUMBER",
                default: "1000",
                help: "Without queries=: how many rows of the table are drawn, by randseed; each finds itself first",
            },
            EngineOption {
                name: "queries_per_request",
                takes: "NUMBER",
                default: "1",
                help: "Query vectors of each op",
            },
            EngineOption {
                name: "recall_sample",
                takes: "NUMBER",
                default: "0",
                help: "After the job compare the answers to so many queries with exact ones, and report recall",
            },
            BYPASS_CACHE,
        ]
    }

    fn check(&self, options: &[(String, String)]) -> Result<(), String> {
        let options = Options(options);
        options.connection()?;
        wanted(options).map(drop)
    }

    fn open(&self, context: &EngineContext) -> Result<Box<dyn Engine>, EngineError> {
        let options = Options(&context.options);
        let mut wanted = wanted(options).map_err(|error| context.error(error))?;
        wanted.question.bypass_cache = context.is_on("bypass_cache");
        let from_file = options.get("queries").map(|file| Pool::read(Path::new(file), usize::MAX));
        let from_file = from_file.transpose().map_err(|error| context.error(error))?;
        let tasks = Tasks::new()?;
        let client = connect(context, &tasks)?;
        let pool = match from_file {
            Some(pool) => pool,
            None => {
                let Question { table, column, .. } = &wanted.question;
                tasks.run(Pool::draw(&client, table, column.as_deref(), wanted.query_rows, context.seed))?
            }
        };
        let searches = Searches {
            client,
            wanted,
            pool: Rc::new(pool),
            values: Values::new(context.seed),
            counts: Rc::default(),
            recall: Rc::default(),
        };
        Ok(Box::new(TaskEngine::new(searches, tasks)))
    }
}

/// What a job asks, as its options say.
#[derive(Clone, Debug)]
struct Wanted {
    /// Without its filter.
    question: Question,
    filter: Option<Template>,
    query_rows: usize,
    per_request: usize,
    sample: usize,
}

impl Wanted {
    fn question(&self, values: &mut Values, place: u64) -> Question {
        let filter = self.filter.as_ref().map(|template| template.fill(values, place));
        Question { filter, ..self.question.clone() }
    }
}

fn wanted(options: Options<'_>) -> Result<Wanted, String> {
    let positive = |name: &str, default: usize| match options.parsed::<usize>(name)? {
        Some(0) => Err(format!("{name}=0: at least 1")),
        count => Ok(count.unwrap_or(default)),
    };
    let k = options.parsed("k")?.unwrap_or(K);
    if !(1..=NEIGHBOURS_MAX).contains(&k) {
        return Err(format!("k={k}: 1 to {NEIGHBOURS_MAX}"));
    }
    let question = Question {
        table: options.table()?.to_string(),
        column: options.get("column").map(String::from),
        k,
        accuracy: accuracy(options)?,
        metric: options.parsed("metric")?,
        filter: None,
        columns: options.get("columns").map(split).unwrap_or_default(),
        bypass_cache: false,
    };
    let wanted = Wanted {
        question,
        filter: options.get("where").map(Template::parse).transpose()?,
        query_rows: positive("query_rows", QUERY_ROWS)?,
        per_request: positive("queries_per_request", 1)?,
        sample: options.parsed("recall_sample")?.unwrap_or(0),
    };
    match (options.get("queries"), options.get("query_rows")) {
        (Some(_), Some(_)) => Err("queries= and query_rows=: queries come from a file or from rows; give one".into()),
        _ => Ok(wanted),
    }
}

fn accuracy(options: Options<'_>) -> Result<Accuracy, String> {
    let named = ["recall", "probes", "ef"];
    let given = named.into_iter().filter_map(|name| options.get(name).map(|value| format!("{name}={value}")));
    let exact = options.get("exact").is_some_and(|value| value != "0").then(|| "exact".to_string());
    match given.chain(exact).collect::<Vec<_>>().as_slice() {
        [] => Ok(Accuracy::Usual),
        [one] => one.parse::<Written>().map(|written| written.0),
        several => Err(format!("{}: give one of recall=, probes=, ef= and exact=1", several.join(", "))),
    }
}

/// The recall of a sample: its sum over queries, and how many they were.
#[derive(Clone, Copy, Debug, Default)]
struct SampledRecall {
    sum: f64,
    queries: u64,
}

struct Searches {
    client: Client,
    wanted: Wanted,
    pool: Rc<Pool>,
    values: Values,
    counts: Rc<RefCell<Counts>>,
    recall: Rc<RefCell<SampledRecall>>,
}

impl Ask for Searches {
    fn ask(&mut self, op: &Op) -> LocalBoxFuture<'static, Result<u64, Error>> {
        let (place, per_request) = (place(op), self.wanted.per_request);
        let question = self.wanted.question(&mut self.values, place);
        let request = self.pool.put(question.request(), place.wrapping_mul(per_request as u64), per_request);
        let (client, counts) = (self.client.clone(), self.counts.clone());
        async move {
            let (bytes, did) = take(&client, request).await?;
            counts.borrow_mut().add(per_request as u64, &did);
            Ok(bytes)
        }
        .boxed_local()
    }

    fn start_measuring(&mut self) {
        *self.counts.borrow_mut() = Counts::default();
    }

    fn findings(&self) -> Findings {
        let (counts, recall) = (self.counts.borrow(), self.recall.borrow());
        let mut figures = counts.figures();
        if recall.queries > 0 {
            let name = format!("recall_at_{}", self.wanted.question.k);
            figures.push(Figure { name, total: recall.sum, count: Some(recall.queries) });
        }
        let plan = counts.plan();
        Findings { figures, notes: if plan.is_empty() { Vec::new() } else { vec![format!("plan: {plan}")] } }
    }

    fn finish(&mut self) -> LocalBoxFuture<'static, Result<(), Error>> {
        let (client, wanted, pool) = (self.client.clone(), self.wanted.clone(), self.pool.clone());
        let (mut values, into) = (self.values.clone(), self.recall.clone());
        async move {
            let sample = wanted.sample.min(pool.len());
            // A filter that changes is another one for each request.
            let changes = wanted.filter.as_ref().is_some_and(Template::changes);
            let step = if changes { wanted.per_request } else { sample.max(1) };
            for first in (0..sample).step_by(step) {
                let queries = first..sample.min(first + step);
                let asked = wanted.question(&mut values, (first / wanted.per_request) as u64);
                let exact = Question { accuracy: Accuracy::Exact, ..asked.clone() };
                let truth = neighbours(&client, &exact, &pool, queries.clone(), EXACT_QUERIES_PER_REQUEST, 1).await?;
                let found = neighbours(&client, &asked, &pool, queries.clone(), wanted.per_request, 1).await?;
                let mut recall = into.borrow_mut();
                recall.sum += mean_recall(&found, &truth) * queries.len() as f64;
                recall.queries += queries.len() as u64;
            }
            Ok(())
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[(&str, &str)]) -> Result<Wanted, String> {
        let all: Vec<(String, String)> =
            [("table", "t")].iter().chain(options).map(|(name, value)| (name.to_string(), value.to_string())).collect();
        wanted(Options(&all))
    }

    #[test]
    fn options_become_a_question() {
        let wanted =
            of(&[("probes", "7"), ("columns", "a, b"), ("queries_per_request", "4"), ("where", "a = $rand(3,3)")]);
        let wanted = wanted.unwrap();
        assert_eq!((wanted.question.accuracy, wanted.question.k, wanted.per_request), (Accuracy::Probes(7), 10, 4));
        let question = wanted.question(&mut Values::new(1), 0);
        assert_eq!((question.filter.as_deref(), question.columns), (Some("a = 3"), vec!["a".into(), "b".into()]));
        assert_eq!(of(&[]).unwrap().question.accuracy, Accuracy::Usual);
        assert_eq!(of(&[("exact", "1"), ("k", "3")]).unwrap().question.accuracy, Accuracy::Exact);
        assert_eq!(of(&[("exact", "0"), ("recall", "0.9")]).unwrap().question.accuracy, Accuracy::Recall(0.9));
    }

    #[test]
    fn options_that_make_no_question_are_named() {
        for (options, part) in [
            (&[("probes", "7"), ("ef", "8")][..], "probes=7, ef=8"),
            (&[("recall", "1.5")], "recall=1.5"),
            (&[("k", "0")], "k=0"),
            (&[("k", "10001")], "10000"),
            (&[("queries_per_request", "0")], "queries_per_request=0"),
            (&[("queries", "q.npy"), ("query_rows", "5")], "give one"),
            (&[("metric", "far")], "metric=far"),
            (&[("where", "a = $rand(2,1)")], "is empty"),
        ] {
            let error = of(options).unwrap_err();
            assert!(error.contains(part), "{options:?}: {error}");
        }
    }
}
