//! `point`: one prepared question again and again, by one client or many.
//!
//! A closed loop: each client asks its next question when the last one is answered.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use futures::future::try_join_all;
use heliostat_client::{Client, ScanRequest};

use crate::latency::percentiles;

/// Asks `count` times in all, over a session per client, after a tenth as often to warm up; prints a JSON object.
pub(crate) async fn point(clients: Vec<Client>, question: ScanRequest, count: u32) -> Result<()> {
    let each = count.div_ceil(clients.len().max(1) as u32);
    let warm = clients.iter().map(|client| ask(client, &question, each.div_ceil(10)));
    try_join_all(warm.collect::<Vec<_>>()).await?;
    let started = Instant::now();
    let asking = clients.into_iter().map(|client| {
        let question = question.clone();
        tokio::spawn(async move { ask(&client, &question, each).await })
    });
    let (mut times, mut rows) = (Vec::new(), 0);
    for answers in try_join_all(asking.collect::<Vec<_>>()).await.context("a client panicked")? {
        let (of_one, rows_of_one) = answers?;
        times.extend(of_one);
        rows = rows_of_one;
    }
    let elapsed = started.elapsed();
    let per_second = times.len() as f64 / elapsed.as_secs_f64();
    let mut answer = percentiles(times);
    answer["rows"] = rows.into();
    answer["per_second"] = per_second.into();
    println!("{answer}");
    Ok(())
}

/// How long each answer took, and the rows of the last.
async fn ask(client: &Client, question: &ScanRequest, count: u32) -> Result<(Vec<Duration>, usize)> {
    let statement = client.prepare(question.clone()).await?;
    let mut times = Vec::with_capacity(count as usize);
    let mut rows = 0;
    for _ in 0..count {
        let started = Instant::now();
        let mut stream = statement.execute(&[]).await?;
        rows = 0;
        while let Some(batch) = stream.try_next().await? {
            rows += batch.num_rows();
        }
        times.push(started.elapsed());
    }
    Ok((times, rows))
}
