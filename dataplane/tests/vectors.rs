//! Vector columns in a cell: what is taken at a load, and what comes back.

mod cell;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::builder::FixedSizeBinaryBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow_buffer::NullBuffer;
use cell::{PATIENCE, TestCell, Wire, assert_clean};
use futures::StreamExt;
use heliostat_client::{Client, ConnectOptions, LoadMode, ScanRequest};
use hidb::frame::FrameKind;
use hidb::proto::{LoadBegin, LoadState};
use hidb::{DataType, Error, ErrorCode, Field, Schema, arrow_mapping};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn schema(vector: &str) -> Schema {
    let fields = vec![Field::new("n", DataType::Int64, false), Field::new("v", vector.parse().unwrap(), true)];
    Schema::new(fields).unwrap()
}

/// Little-endian elements of a vector column.
fn bytes_of(element: &str, values: &[f32]) -> Vec<u8> {
    let half = |value: &f32| heliostat_vector::f16::from_f32(*value).to_le_bytes();
    match element {
        "f32" => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        _ => values.iter().flat_map(half).collect(),
    }
}

/// Rows numbered from `first` with vectors of three elements, each its own number, but for what `change` says.
fn batch(element: &str, first: i64, rows: usize, nulls: Option<Vec<bool>>, change: &[(usize, f32)]) -> RecordBatch {
    let mut values: Vec<f32> = (0..rows * 3).map(|at| (at % 100) as f32).collect();
    change.iter().for_each(|(at, value)| values[*at] = *value);
    let schema = schema(&format!("vector(3,{element})"));
    let vector = schema.fields()[1].data_type;
    let nulls = nulls.map(NullBuffer::from);
    let vectors = arrow_mapping::vector_array(&vector, rows, bytes_of(element, &values).into(), nulls).unwrap();
    let numbers = Int64Array::from_iter_values(first..first + rows as i64);
    RecordBatch::try_new(arrow_mapping::to_arrow_schema(&schema, true), vec![Arc::new(numbers), vectors]).unwrap()
}

async fn load(client: &Client, table: &str, schema: &Schema, batches: &[RecordBatch]) -> Result<(), Error> {
    let mut writer = client.load(table, schema, LoadMode::Create).await?;
    for batch in batches {
        writer.write(batch).await?;
    }
    writer.commit().await.map(drop)
}

async fn read(client: &Client, request: ScanRequest) -> Vec<RecordBatch> {
    let mut stream = client.scan(request).await.unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = stream.next().await {
        batches.push(batch.unwrap());
    }
    batches
}

#[test]
fn components_that_are_not_finite_are_refused_with_the_row_of_the_load() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    runtime().block_on(async {
        let client =
            Client::connect(&format!("hidb+plain://{}", cell.address), ConnectOptions::default()).await.unwrap();
        for element in ["f32", "f16"] {
            let schema = schema(&format!("vector(3,{element})"));
            // The client cuts batches of 16,384 rows: rows are counted over all of them.
            for (at, value, shown) in [
                (0, f32::NAN, "row 20000: component 0 is NaN"),
                (3 * 16_383 + 2, f32::INFINITY, "row 36383: component 2 is inf"),
                (3 * 29_999 + 1, f32::NEG_INFINITY, "row 49999: component 1 is -inf"),
            ] {
                let batches = [batch(element, 0, 20_000, None, &[]), batch(element, 0, 30_000, None, &[(at, value)])];
                let error = load(&client, "bad", &schema, &batches).await.unwrap_err();
                assert_eq!(error.code, ErrorCode::InvalidValue, "{error}");
                let column = format!("column \"v\" (vector(3,{element})): {shown}");
                assert!(error.message.contains(&column), "{error}");
            }
            // The first of several, in a slice, after NULLs whose slots hold anything.
            let valid: Vec<bool> = (0..1000).map(|row| row % 3 != 0).collect();
            let nans: Vec<(usize, f32)> = (0..1000).step_by(3).map(|row| (3 * row + 1, f32::NAN)).collect();
            let fine = batch(element, 0, 1000, Some(valid.clone()), &nans);
            let odd = [&nans[..], &[(3 * 700, f32::NAN), (3 * 701, f32::NAN)]].concat();
            let odd = batch(element, 0, 1000, Some(valid), &odd).slice(100, 900);
            let error = load(&client, "bad", &schema, &[odd]).await.unwrap_err();
            assert!(error.message.contains("row 600: component 0 is NaN"), "{error}");
            let table = format!("fine_{element}");
            load(&client, &table, &schema, &[fine.clone(), fine.slice(500, 250)]).await.unwrap();
            let rows = read(&client, ScanRequest::table(&table)).await;
            let nulls: usize = rows.iter().map(|batch| batch.column(1).null_count()).sum();
            assert_eq!((rows.iter().map(RecordBatch::num_rows).sum::<usize>(), nulls), (1250, 334 + 83));
        }
        let tables = client.tables().await.unwrap();
        assert_eq!(tables.len(), 2, "{tables:?}");
    });
    assert!(cell.stop().success());
    assert_clean(folder.path());
}

#[test]
fn a_refused_batch_leaves_the_load_where_it_was_and_can_be_sent_corrected() {
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &[]);
    let mut wire = Wire::connect(cell.address);
    let begin = proto_begin([7; 16], &schema("vector(3,f32)"));
    let begin_again = |wire: &mut Wire| wire.ask::<LoadState>(FrameKind::LoadBegin, &begin).unwrap();
    begin_again(&mut wire);
    wire.load_batch([7; 16], 0, &batch("f32", 0, 100, None, &[])).unwrap();
    wire.load_batch([7; 16], 1, &batch("f32", 100, 100, None, &[(3 * 5 + 2, f32::NAN)])).unwrap();
    let refused = wire.answer::<LoadState>(0).unwrap_err().message;
    assert!(refused.starts_with("batch 1, rows from 100 of the load: ") && refused.contains("row 105:"), "{refused}");
    // What was refused is not there: a commit can't take its place for granted.
    assert!(wire.load_commit([7; 16], 2).is_err());
    // Another connection takes the load up where it is durable, and rows go on being counted from there.
    let mut wire = Wire::connect(cell.address);
    for number in begin_again(&mut wire).durable_batches..2 {
        wire.load_batch([7; 16], number, &batch("f32", 100 * number as i64, 100, None, &[])).unwrap();
    }
    wire.load_batch([7; 16], 2, &batch("f32", 200, 100, None, &[(0, f32::INFINITY)])).unwrap();
    let refused = wire.answer::<LoadState>(0).unwrap_err().message;
    assert!(refused.contains("row 200: component 0 is inf"), "{refused}");
    let mut wire = Wire::connect(cell.address);
    for number in begin_again(&mut wire).durable_batches..3 {
        wire.load_batch([7; 16], number, &batch("f32", 100 * number as i64, 100, None, &[])).unwrap();
    }
    wire.load_commit([7; 16], 3).unwrap();
    assert_eq!(wire.tables()[0].rows, 300);
}

fn proto_begin(load_id: [u8; 16], schema: &Schema) -> LoadBegin {
    LoadBegin {
        load_id: load_id.to_vec().into(),
        table: "t".into(),
        schema: Some(hidb::convert::schema_to_proto(schema)),
        mode: hidb::proto::load_begin::Mode::Create.into(),
        shards: 0,
    }
}

#[test]
fn vectors_of_bits_are_stored_compared_merged_and_returned() {
    const ROWS: usize = 2500;
    const LOADS: usize = 24;
    let value = |row: usize| [(row % 7) as u8, (row % 11) as u8, (row % 3) as u8];
    let folder = tempfile::tempdir().unwrap();
    let cell = TestCell::start(folder.path(), &["--merge-interval", "20ms"]);
    let schema = schema("vector(19,bit)");
    let rows = |first: usize| {
        let mut bits = FixedSizeBinaryBuilder::new(3);
        for row in first..first + ROWS {
            match row % 13 {
                0 => bits.append_null(),
                _ => bits.append_value(value(row)).unwrap(),
            }
        }
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values((first..first + ROWS).map(|n| n as i64)));
        let bits: ArrayRef = Arc::new(bits.finish());
        RecordBatch::try_from_iter_with_nullable([("n", numbers, false), ("v", bits, true)]).unwrap()
    };
    let check = |batches: &[RecordBatch]| {
        let mut seen = 0;
        for batch in batches {
            let numbers = batch.column(0).as_primitive::<Int64Type>();
            let bits = batch.column(1).as_fixed_size_binary();
            for row in 0..batch.num_rows() {
                let n = numbers.value(row) as usize;
                assert_eq!(
                    bits.is_valid(row).then(|| bits.value(row)),
                    (!n.is_multiple_of(13)).then_some(&value(n)[..]),
                    "{n}"
                );
                seen += 1;
            }
        }
        seen
    };
    let url = format!("hidb+plain://{}", cell.address);
    runtime().block_on(async {
        let client = Client::connect(&url, ConnectOptions::default()).await.unwrap();
        load(&client, "t", &schema, &[rows(0)]).await.unwrap();
        for number in 1..LOADS {
            let mut writer = client.load("t", &schema, LoadMode::Append).await.unwrap();
            writer.write(&rows(number * ROWS)).await.unwrap();
            writer.commit().await.unwrap();
        }
        let until = Instant::now() + PATIENCE;
        while client.describe("t").await.unwrap().segments > LOADS as u64 / 2 {
            assert!(Instant::now() < until, "nothing is merged");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(client.describe("t").await.unwrap().schema, schema);
        let all = read(&client, ScanRequest::table("t")).await;
        assert_eq!(arrow_mapping::from_arrow_schema(all[0].schema_ref()).unwrap(), schema);
        assert_eq!(check(&all), LOADS * ROWS);
        let some = read(&client, ScanRequest::table("t").filter("n % 5 = 0 and v is not null")).await;
        assert_eq!(check(&some), (0..LOADS * ROWS).filter(|n| n % 5 == 0 && n % 13 != 0).count());
        // Spare bits would make vectors differ that are equal.
        let mut set = FixedSizeBinaryBuilder::new(3);
        set.append_value([0, 0, 0b1000]).unwrap();
        let columns: [(&str, ArrayRef, bool); 2] =
            [("n", Arc::new(Int64Array::from(vec![0])), false), ("v", Arc::new(set.finish()), true)];
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let error = load(&client, "bad", &schema, &[batch]).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidValue, "{error}");
    });
    assert!(cell.stop().success());
    assert_clean(folder.path());
    let cell = TestCell::start(folder.path(), &[]);
    let url = format!("hidb+plain://{}", cell.address);
    runtime().block_on(async {
        let client = Client::connect(&url, ConnectOptions::default()).await.unwrap();
        assert_eq!(check(&read(&client, ScanRequest::table("t")).await), LOADS * ROWS);
    });
}
