//! Nearest neighbours over every transport: the same rows in the same order, and as many bytes, as over TCP.
//!
//! Exact, by a graph and by an IVF index, filtered and not, with the vectors in the answer so that it takes many frames.
//! `HELIOSTAT_TRANSPORTS` names the transports, as for the other tests of this crate, `HELIOSTAT_ROWS` how many vectors are
//! searched, at least 600 (4,000).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use arrow_array::{Int32Array, RecordBatch};
use futures::TryStreamExt;
use heliostat_client::{Accuracy, Client, LoadMode, QueryVector, SearchRequest};
use heliostat_reference::Cell;
use heliostat_reference::surroundings::{is_rdma, transports, variable};
use hidb::proto::index_summary::State;
use hidb::proto::{IndexDefinition, IndexKind};
use hidb::{DataType, Field, Schema, arrow_mapping};
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 4000;
const DIMENSION: usize = 48;

fn vectors() -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(31);
    (0..variable("HELIOSTAT_ROWS").unwrap_or(ROWS))
        .map(|_| (0..DIMENSION).map(|_| rng.random_range(-1.0f32..1.0)).collect())
        .collect()
}

async fn load(client: &Client, vectors: &[Vec<f32>]) -> Result<()> {
    let vector: DataType = format!("vector({DIMENSION},f32)").parse()?;
    let fields = vec![Field::new("n", DataType::Int32, false), Field::new("v", vector, false)];
    let schema = Schema::new(fields)?;
    let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let column = arrow_mapping::vector_array(&vector, vectors.len(), bytes.into(), None)?;
    let columns = vec![Arc::new((0..vectors.len() as i32).collect::<Int32Array>()) as _, column];
    let batch = RecordBatch::try_new(arrow_mapping::to_arrow_schema(&schema, true), columns)?;
    let mut writer = client.load("t", &schema, LoadMode::Create).await?;
    writer.write(&batch).await?;
    writer.commit().await?;
    Ok(())
}

async fn index(client: &Client, kind: IndexKind) -> Result<()> {
    client.drop_index("t", "v", true).await?;
    let definition = IndexDefinition { column: "v".into(), kind: kind as i32, ..Default::default() };
    client.create_index("t", definition, false).await?;
    let started = Instant::now();
    while client.list_indexes(Some("t")).await?.iter().any(|index| index.state() != State::Ready) {
        ensure!(started.elapsed() < Duration::from_secs(120), "the index is not built");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The answers to all questions.
async fn answers(client: &Client, vectors: &[Vec<f32>]) -> Result<Vec<Vec<RecordBatch>>> {
    let queries = || vectors.iter().step_by(97).map(|query| QueryVector::from(query.clone()));
    let request = || SearchRequest::table("t").column("v").k(60).select(["n", "v"]).vectors(queries());
    let questions = [
        request().accuracy(Accuracy::Exact),
        request().accuracy(Accuracy::Recall(0.9)),
        request().accuracy(Accuracy::Recall(0.9)).filter("n % 10 = 3"),
        request().accuracy(Accuracy::Recall(0.9)).filter("n < 3000"),
    ];
    let mut answers = Vec::new();
    for question in questions {
        answers.push(client.search(question).await?.try_collect::<Vec<_>>().await?);
    }
    Ok(answers)
}

/// One batch: where frames end is the transport's business.
fn joined(batches: &[RecordBatch]) -> Result<RecordBatch> {
    Ok(arrow_select::concat::concat_batches(&batches[0].schema(), batches)?)
}

#[test]
fn every_transport_finds_the_same_neighbours() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let cell = Cell::start(2);
        let vectors = vectors();
        let tcp = cell.connect("tcp").await?;
        load(&tcp, &vectors).await?;
        for kind in [IndexKind::Graph, IndexKind::Ivf] {
            index(&tcp, kind).await?;
            let expected = answers(&tcp, &vectors).await?;
            for way in transports().into_iter().filter(|way| way != "tcp") {
                let client = cell.connect(&way).await?;
                for (question, (found, expected)) in answers(&client, &vectors).await?.iter().zip(&expected).enumerate()
                {
                    let (found, expected) = (joined(found)?, joined(expected)?);
                    ensure!(expected.num_rows() == 60 * vectors.len().div_ceil(97), "{} rows", expected.num_rows());
                    ensure!(found == expected, "{way}, {kind:?}: question {question} has another answer than over TCP");
                }
                let rdma = client.rdma_statistics().await?;
                ensure!(!is_rdma(&way) || rdma.in_place + rdma.copied_out > 0, "{way}: nothing came over the link");
            }
        }
        Ok(())
    })
}
