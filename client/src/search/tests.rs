//! Searches and deletes against a cell that answers as it is told: order, loss, stale schemas, statistics.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{ArrayRef, Float32Array, Int32Array, Int64Array, RecordBatch};
use futures::{StreamExt, TryStreamExt};
use hidb::frame::{Frame, FrameDecoder, FrameKind, PROTOCOL_VERSION, encode_frame};
use hidb::proto::{ScanStatistics, SearchStatistics};
use hidb::{DataType, Error, ErrorCode, Field, Result, Schema, VectorElement, convert, image, proto};

use super::{Accuracy, SearchRequest};
use crate::{Client, ConnectOptions};

/// What the cell does with the searches and deletes that come next, before it begins to answer them as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Once {
    /// Waits until there are so many, and answers the last one first.
    Backwards(usize),
    /// Closes the connection.
    Lose,
    /// Sends the schema of the answer, and closes the connection.
    LoseWithin,
    /// Sends a batch, and closes the connection.
    LoseAfter,
    /// Says that the schema has changed.
    Stale,
}

#[derive(Default)]
struct Seen {
    searches: Vec<proto::VectorSearchRequest>,
    deletes: Vec<proto::DeleteRows>,
    describes: usize,
}

/// A cell of one table `t`: `id int64, v vector(1,f32)`. The neighbour of a vector is the row whose number is its component.
struct FakeCell {
    url: String,
    plan: Arc<Mutex<Vec<Once>>>,
    seen: Arc<Mutex<Seen>>,
}

fn table() -> Schema {
    let vector = DataType::Vector { dimension: 1, element: VectorElement::F32 };
    Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("v", vector, false)]).unwrap()
}

impl FakeCell {
    fn start(plan: &[Once]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("hidb+plain://{}", listener.local_addr().unwrap());
        let cell = FakeCell { url, plan: Arc::new(Mutex::new(plan.to_vec())), seen: Arc::default() };
        let (plan, seen) = (cell.plan.clone(), cell.seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (plan, seen) = (plan.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, &plan, &seen));
            }
        });
        cell
    }

    async fn connect(&self) -> Client {
        Client::connect(&self.url, ConnectOptions::default()).await.unwrap()
    }

    fn searches(&self) -> Vec<proto::VectorSearchRequest> {
        self.seen.lock().unwrap().searches.clone()
    }
}

fn serve(mut stream: TcpStream, plan: &Mutex<Vec<Once>>, seen: &Mutex<Seen>) -> Option<()> {
    let mut decoder = FrameDecoder::new();
    let mut waiting: Vec<Frame> = Vec::new();
    loop {
        let mut frame = None;
        while frame.is_none() {
            match stream.read(decoder.space()).ok()? {
                0 => return None,
                count => frame = decoder.advance(count).unwrap(),
            }
        }
        let frame = frame?;
        match frame.kind {
            FrameKind::Hello => {
                let hello = proto::HelloAck {
                    version: PROTOCOL_VERSION.into(),
                    cell_name: "fake".into(),
                    ..Default::default()
                };
                send(&mut stream, FrameKind::HelloAck, frame.request_id, &hello)?;
            }
            FrameKind::DescribeTable => {
                seen.lock().unwrap().describes += 1;
                let described =
                    proto::TableDescription { schema: Some(convert::schema_to_proto(&table())), ..Default::default() };
                send(&mut stream, FrameKind::TableDescription, frame.request_id, &described)?;
            }
            FrameKind::VectorSearchRequest => {
                seen.lock().unwrap().searches.push(frame.message().unwrap());
                let next = plan.lock().unwrap().first().copied();
                waiting.push(frame);
                if !matches!(next, Some(Once::Backwards(count)) if waiting.len() < count) {
                    if next.is_some() {
                        plan.lock().unwrap().remove(0);
                    }
                    waiting.reverse();
                    for frame in waiting.drain(..) {
                        search(&mut stream, &frame, next)?;
                    }
                }
            }
            FrameKind::DeleteRows => {
                seen.lock().unwrap().deletes.push(frame.message().unwrap());
                let mut plan = plan.lock().unwrap();
                match plan.is_empty() {
                    true => {
                        send(&mut stream, FrameKind::RowsDeleted, frame.request_id, &proto::RowsDeleted { rows: 42 })?
                    }
                    false if plan.remove(0) == Once::Lose => return None,
                    false => send(&mut stream, FrameKind::Error, frame.request_id, &stale())?,
                }
            }
            FrameKind::Cancel | FrameKind::Credit | FrameKind::Heartbeat => {}
            other => panic!("{other:?}"),
        }
    }
}

fn stale() -> proto::Error {
    convert::error_to_proto(&Error::new(ErrorCode::StaleSchema, "the schema is another one"))
}

fn send(stream: &mut TcpStream, kind: FrameKind, id: u64, body: &impl prost::Message) -> Option<()> {
    stream.write_all(&encode_frame(kind, id, body, &[]).unwrap()).ok()
}

/// Answers a search; `None` when the connection is to end.
fn search(stream: &mut TcpStream, frame: &Frame, once: Option<Once>) -> Option<()> {
    let request: proto::VectorSearchRequest = frame.message().unwrap();
    if once == Some(Once::Lose) {
        return None;
    }
    if once == Some(Once::Stale) {
        return send(stream, FrameKind::Error, frame.request_id, &stale());
    }
    let components = request.query_vectors.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()) as i64);
    let rowids: ArrayRef = Arc::new(Int64Array::from_iter_values(components));
    let distances: ArrayRef = Arc::new(Float32Array::from(vec![0.0; rowids.len()]));
    let mut fields =
        vec![Field::new("_rowid", DataType::Int64, false), Field::new("distance", DataType::Float32, false)];
    let mut columns = vec![rowids, distances];
    if request.query_count > 1 {
        fields.insert(0, Field::new("query", DataType::Int32, false));
        columns.insert(0, Arc::new(Int32Array::from_iter_values(0..request.query_count as i32)));
    }
    let schema = Schema::of_result(fields);
    let batch = RecordBatch::try_new(hidb::arrow_mapping::to_arrow_schema(&schema, true), columns).unwrap();
    let mut part = |body: proto::FilteredResultSet, payload: &[u8]| {
        let bytes = encode_frame(FrameKind::FilteredResultSet, frame.request_id, &body, payload).unwrap();
        stream.write_all(&bytes).ok()
    };
    part(proto::FilteredResultSet::default(), &image::schema_message(&schema, true))?;
    if once == Some(Once::LoseWithin) {
        return None;
    }
    let rows = batch.num_rows() as u64;
    let image = image::image_of_batch(&batch).unwrap();
    part(proto::FilteredResultSet { sequence: 1, rows, ..Default::default() }, &image.bytes)?;
    if once == Some(Once::LoseAfter) {
        return None;
    }
    let last = proto::FilteredResultSet {
        sequence: 2,
        last: true,
        statistics: Some(ScanStatistics { rows, ..Default::default() }),
        search: Some(SearchStatistics { plan: "exact".into(), rows_compared: 7, ..Default::default() }),
        ..Default::default()
    };
    part(last, &[])
}

fn request(queries: usize) -> SearchRequest {
    SearchRequest::table("t").vectors((0..queries).map(|query| [query as f32])).accuracy(Accuracy::Exact)
}

/// Each query's number, and its neighbour.
async fn neighbours(client: &Client, request: SearchRequest) -> Result<Vec<(i32, i64)>> {
    let batches: Vec<RecordBatch> = client.search(request).await?.try_collect().await?;
    let mut all = Vec::new();
    for batch in batches {
        let queries = batch.column(0).as_primitive::<Int32Type>().values().to_vec();
        all.extend(queries.into_iter().zip(batch.column(1).as_primitive::<Int64Type>().values().iter().copied()));
    }
    Ok(all)
}

fn expected(queries: usize) -> Vec<(i32, i64)> {
    (0..queries).map(|query| (query as i32, query as i64)).collect()
}

#[tokio::test]
async fn a_long_batch_is_several_requests_under_way_together_and_one_answer() {
    let cell = FakeCell::start(&[Once::Backwards(3)]);
    let client = cell.connect().await;
    let mut stream = client.search(request(2500)).await.unwrap();
    let mut all = Vec::new();
    while let Some(batch) = stream.next().await {
        let batch = batch.unwrap();
        assert_eq!(batch.schema(), stream.schema());
        all.extend(batch.column(0).as_primitive::<Int32Type>().values().iter().copied());
    }
    assert!(all.into_iter().eq(0..2500));
    let searches = cell.searches();
    assert!(searches.iter().map(|search| search.query_count).eq([833, 833, 834]), "{searches:?}");
    assert_eq!((stream.rows(), stream.statistics().unwrap().rows), (2500, 2500));
    let did = stream.search_statistics().unwrap();
    assert_eq!((did.plan.as_str(), did.rows_compared), ("exact", 21));
    assert!(stream.elapsed().is_some());
}

#[tokio::test]
async fn one_vector_has_no_number_and_each_of_several_has() {
    let cell = FakeCell::start(&[]);
    let client = cell.connect().await;
    let one: Vec<RecordBatch> = client.search(request(1)).await.unwrap().try_collect().await.unwrap();
    assert!(one[0].schema().fields().iter().map(|field| field.name().as_str()).eq(["_rowid", "distance"]));
    for queries in [2, 1024, 1025, 5000] {
        assert_eq!(neighbours(&client, request(queries)).await.unwrap(), expected(queries));
    }
}

#[tokio::test]
async fn a_search_that_is_lost_before_its_first_batch_is_asked_again() {
    for once in [Once::Lose, Once::LoseWithin] {
        let cell = FakeCell::start(&[once]);
        let client = cell.connect().await;
        assert_eq!(neighbours(&client, request(5)).await.unwrap(), expected(5), "{once:?}");
        assert_eq!(cell.searches().len(), 2, "{once:?}");
    }
}

#[tokio::test]
async fn half_an_answer_is_an_error_and_never_a_whole_one() {
    let cell = FakeCell::start(&[Once::LoseAfter]);
    let client = cell.connect().await;
    let mut stream = client.search(request(5)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().num_rows(), 5);
    assert_eq!(stream.next().await.unwrap().unwrap_err().code, ErrorCode::Unavailable);
    assert!(stream.next().await.is_none() && stream.statistics().is_none());
}

#[tokio::test]
async fn a_stale_schema_is_fetched_again_for_searches_and_deletes() {
    let cell = FakeCell::start(&[Once::Stale]);
    let client = cell.connect().await;
    assert_eq!(neighbours(&client, request(5)).await.unwrap(), expected(5));
    assert_eq!((cell.searches().len(), cell.seen.lock().unwrap().describes), (2, 2));
    cell.plan.lock().unwrap().push(Once::Stale);
    assert_eq!(client.delete_rows("t", Some("id > 3".into())).await, Ok(42));
    let seen = cell.seen.lock().unwrap();
    assert_eq!((seen.deletes.len(), seen.describes), (2, 3));
    let filter = hidb::plan::substrait::filter_from_substrait(&seen.deletes[1].substrait_filter, &table()).unwrap();
    assert_eq!(filter, hidb::plan::sql::parse_predicate("id > 3", &table()).unwrap());
    assert_eq!(seen.deletes[1].schema_hash, table().hash());
}

#[tokio::test]
async fn a_delete_that_is_lost_is_not_done_twice_and_drops_what_is_remembered() {
    let cell = FakeCell::start(&[]);
    let client = cell.connect().await;
    assert_eq!(client.delete_rows("t", None).await, Ok(42));
    assert!(cell.seen.lock().unwrap().deletes[0].substrait_filter.is_empty());
    // What was known of the table is asked for again.
    client.schema("t").await.unwrap();
    assert_eq!(cell.seen.lock().unwrap().describes, 2);
    cell.plan.lock().unwrap().push(Once::Lose);
    let error = client.delete_rows("t", None).await.unwrap_err();
    assert_eq!((error.code, cell.seen.lock().unwrap().deletes.len()), (ErrorCode::Unavailable, 2));
}

#[tokio::test]
async fn a_mistake_in_a_search_never_reaches_the_cell() {
    let cell = FakeCell::start(&[]);
    let client = cell.connect().await;
    for (request, code) in [
        (request(0), ErrorCode::InvalidParameter),
        (request(5).vector([1.0, 2.0]), ErrorCode::TypeMismatch),
        (request(5).vector([f32::NAN]), ErrorCode::InvalidValue),
        (request(5000).vector([f32::NAN]), ErrorCode::InvalidValue),
        (request(5).select(["nothing"]), ErrorCode::UnknownColumn),
    ] {
        assert_eq!(client.search(request).await.unwrap_err().code, code);
    }
    assert!(cell.searches().is_empty());
}
