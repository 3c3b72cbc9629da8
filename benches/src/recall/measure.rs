//! Measuring one parameter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use heliostat_client::Client;

use super::curve::Point;
use crate::latency::percentiles;
use crate::search::{Counts, Neighbours, Pool, Question, Written, mean_recall, neighbours, take};

/// How a parameter is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// Requests under way on each connection, for queries per second.
    pub iodepth: usize,
    /// How long latency, and queries per second, are measured.
    pub time: Duration,
}

/// Recall of all queries of the pool, then latency, then queries per second.
pub(super) async fn point(
    clients: &[Client],
    parameter: Written,
    question: &Arc<Question>,
    pool: &Arc<Pool>,
    truth: &Neighbours,
    how: How,
) -> Result<Point> {
    let found = neighbours(&clients[0], question, pool, 0..pool.len(), 1, how.iodepth).await?;
    let single = ask(&clients[..1], question, pool, 1, how.time).await?;
    let pipelined = ask(clients, question, pool, how.iodepth, how.time).await?;
    let latency = percentiles(single.times);
    let us = |name: &str| latency[name].as_f64().unwrap_or(f64::NAN);
    Ok(Point {
        parameter: parameter.to_string(),
        recall: mean_recall(&found, truth),
        queries_per_second: pipelined.times.len() as f64 / pipelined.elapsed.as_secs_f64(),
        p50_us: us("p50"),
        p99_us: us("p99"),
        device_reads: single.counts.mean("device_reads"),
        device_bytes: single.counts.mean("device_bytes"),
        plan: single.counts.plan(),
    })
}

/// What was measured of requests for one query each.
struct Asked {
    times: Vec<Duration>,
    elapsed: Duration,
    counts: Counts,
}

/// Asks one query after the other, `depth` at a time on each connection, until the time is over.
async fn ask(
    clients: &[Client],
    question: &Arc<Question>,
    pool: &Arc<Pool>,
    depth: usize,
    time: Duration,
) -> Result<Asked> {
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let askers = clients.iter().flat_map(|client| std::iter::repeat_n(client, depth)).map(|client| {
        let (client, question, pool, next) = (client.clone(), question.clone(), pool.clone(), next.clone());
        tokio::spawn(async move {
            let (mut times, mut counts) = (Vec::new(), Counts::default());
            while times.is_empty() || started.elapsed() < time {
                let request = pool.put(question.request(), next.fetch_add(1, Ordering::Relaxed), 1);
                let began = Instant::now();
                let (_, did) = take(&client, request).await?;
                times.push(began.elapsed());
                counts.add(1, &did);
            }
            Ok::<_, hidb::Error>((times, counts))
        })
    });
    let answers = try_join_all(askers.collect::<Vec<_>>()).await.context("a client panicked")?;
    let mut all = Asked { times: Vec::new(), elapsed: started.elapsed(), counts: Counts::default() };
    for asked in answers {
        let (times, counts) = asked?;
        all.times.extend(times);
        all.counts.merge(&counts);
    }
    Ok(all)
}
