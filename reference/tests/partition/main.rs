//! A network between client and cell that is cut and whole again: errors with a code in bounded time, or the right rows,
//! and nothing left behind; over TLS and over links.

mod network;

use std::time::{Duration, Instant};

use anyhow::Result;
use arrow_array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use heliostat_client::{Client, ConnectOptions, ScanRequest, ScanStream};
use heliostat_reference::Cell;
use heliostat_reference::numbers::{is_whole, load, whole_answer};
use heliostat_reference::surroundings::is_rdma;
use hidb::{Error, ErrorCode};

use network::{Cut, Network, in_a_network};

const ROWS: i64 = 2_000_000;
const WAYS: [&str; 2] = ["tls", "soft"];
const CUTS: [Cut; 2] = [Cut::LinkDown, Cut::Silence];
/// How long a peer may be silent.
const DEAD: Duration = Duration::from_secs(1);
/// After which an error must be there: the heartbeat after the one that is due finds it out; the rest is for a busy
/// machine.
const BOUND: Duration = Duration::from_secs(6);

fn start(network: &Network, dead: Duration) -> Cell {
    let dead = format!("{}ms", dead.as_millis());
    Cell::start_in(network.surroundings(), 2, &["--heartbeat-interval", "200ms", "--dead-peer-timeout", &dead])
}

async fn connect(cell: &Cell, way: &str, retry_for: Duration) -> hidb::Result<Client> {
    let options = ConnectOptions { connect_timeout: DEAD, retry_for, ..ConnectOptions::default() };
    cell.connect_with(way, options).await
}

/// The first batch of an answer of which most is still to come.
async fn half_taken(client: &Client) -> Result<(RecordBatch, ScanStream)> {
    let mut stream = client.scan(ScanRequest::table("t").frames_ahead(2)).await?;
    let first = stream.next().await.expect("a batch")?;
    Ok((first, stream))
}

/// A cell loaded with numbers, and a client that has its links.
async fn loaded(cell: &Cell, way: &str, retry_for: Duration) -> Result<Client> {
    load(&connect(cell, "tls", retry_for).await?, ROWS).await?;
    let client = connect(cell, way, retry_for).await?;
    whole_answer(&client, ROWS).await?;
    Ok(client)
}

async fn assert_well(client: &Client, way: &str) -> Result<()> {
    whole_answer(client, ROWS).await?;
    assert_eq!(client.rdma_statistics().await?.links > 0, is_rdma(way), "{way}");
    Ok(())
}

#[test]
fn a_cut_is_an_error_in_bounded_time_and_leaves_nothing() -> Result<()> {
    in_a_network("a_cut_is_an_error_in_bounded_time_and_leaves_nothing", async |network| {
        for way in WAYS {
            let cell = start(&network, DEAD);
            // After a link came up, the first packets may get lost.
            let client = loaded(&cell, way, 3 * DEAD).await?;
            let mut resident = Vec::new();
            for cut in CUTS.into_iter().cycle().take(6) {
                let (_, stream) = half_taken(&client).await?;
                network.cut(cut);
                let began = Instant::now();
                let rest: Result<Vec<RecordBatch>, Error> = stream.try_collect().await;
                let error = rest.expect_err("rows through a cut");
                assert_eq!(error.code, ErrorCode::Unavailable, "{way}, {cut:?}: {error}");
                assert!(began.elapsed() < BOUND, "{way}, {cut:?}: known after {:?}", began.elapsed());
                let asked = Instant::now();
                let error: Error =
                    whole_answer(&client, ROWS).await.expect_err("an answer through a cut").downcast()?;
                assert_eq!(error.code, ErrorCode::Unavailable, "{way}, {cut:?}: {error}");
                assert!(asked.elapsed() < BOUND, "{way}, {cut:?}: refused after {:?}", asked.elapsed());
                // The cell needs nobody to tell it.
                cell.wait_for_no_sessions(BOUND);
                network.heal(cut);
                assert_well(&client, way).await?;
                resident.push(cell.resident_bytes());
            }
            let (first, last) = (resident[1], resident[5]);
            assert!(last < first + (64 << 20), "{way}: the cell grows: {resident:?}");
        }
        Ok(())
    })
}

#[test]
fn a_question_asked_during_a_cut_is_answered_after_it() -> Result<()> {
    in_a_network("a_question_asked_during_a_cut_is_answered_after_it", async |network| {
        for way in WAYS {
            let cell = start(&network, DEAD);
            let client = loaded(&cell, way, 4 * BOUND).await?;
            for cut in CUTS {
                network.cut(cut);
                let heal = async {
                    tokio::time::sleep(2 * DEAD).await;
                    network.heal(cut);
                    Ok(())
                };
                tokio::try_join!(heal, assert_well(&client, way))?;
            }
            // While nothing is asked, too, a connection is given up, and made again by the next question.
            network.cut(Cut::Silence);
            cell.wait_for_no_sessions(BOUND);
            network.heal(Cut::Silence);
            assert_well(&client, way).await?;
        }
        Ok(())
    })
}

#[test]
fn a_cut_shorter_than_the_timeouts_costs_no_rows() -> Result<()> {
    in_a_network("a_cut_shorter_than_the_timeouts_costs_no_rows", async |network| {
        for way in WAYS {
            let cell = start(&network, 4 * DEAD);
            let client = loaded(&cell, way, 4 * BOUND).await?;
            let session = cell.sessions()[0]["session"].clone();
            for cut in CUTS {
                let (first, stream) = half_taken(&client).await?;
                network.cut(cut);
                let heal = async {
                    tokio::time::sleep(Duration::from_millis(150)).await;
                    network.heal(cut);
                    Ok(())
                };
                let (_, mut batches) = tokio::try_join!(heal, stream.try_collect::<Vec<RecordBatch>>())?;
                batches.push(first);
                assert!(is_whole(&batches, ROWS), "{way}, {cut:?}: rows are missing");
                assert_well(&client, way).await?;
                assert_eq!(cell.sessions()[0]["session"], session, "{way}, {cut:?}: it was another connection");
            }
        }
        Ok(())
    })
}
