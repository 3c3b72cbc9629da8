//! Writes the seed corpora: `cd fuzz && cargo run --example seeds`. Then `git add fuzz/corpus` takes in those that are new:
//! what fuzzers find has names of 40 digits, which `.gitignore` leaves out.

mod indexes;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Float32Array, Float64Array, Int16Array, Int32Array,
    Int64Array, StringArray,
};
use heliostat_segment::{RowIds, SegmentBuilder, SegmentIdentity, encode_chunk, encode_row_group};
use hidb::arrow_mapping::to_arrow_schema;
use hidb::auth::scram::{Verifier, client, server};
use hidb::frame::{FrameKind, encode_frame, payload_crc};
use hidb::image::{ImageLayout, ImageWriter, read_image, schema_message};
use hidb::plan::sql::{ScanText, parse_predicate, parse_scan};
use hidb::plan::substrait::{filter_to_substrait, to_substrait};
use hidb::session::frames::slot_head;
use hidb::{Field, Schema, convert, proto};
use prost::Message as _;
use roaring::RoaringBitmap;

#[path = "../../dataplane/src/volume/deletion.rs"]
#[allow(dead_code, reason = "records are written here, not read")]
mod deletion;

use deletion::DeletionRecord;
use indexes::Input;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let columns = [
        ("id", "int64", false),
        ("n", "int32", true),
        ("price", "decimal(15,2)", false),
        ("wide", "decimal(30,4)", true),
        ("d", "float64", true),
        ("name", "text", true),
        ("day", "date", true),
        ("at", "timestamp", true),
        ("flag", "boolean", true),
        ("v", "vector(2,f32)", true),
    ];
    let mut fields = Vec::new();
    for (name, data_type, nullable) in columns {
        fields.push(Field::new(name, data_type.parse()?, nullable));
    }
    let schema = Schema::new(fields)?;

    let texts = [
        ("id = 7", "id, name", "", ""),
        ("price between 1.5 and 20.25 and n <> 3 or n in (1, 2, null)", "price * 2 as twice", "", "id"),
        ("name like '%a%' and name not ilike 'b_'", "", "count(*), sum(price), avg(wide), count(distinct n)", "name"),
        ("day + interval '1' month > date '1994-01-01' and extract(year from at) = 1995", "id", "", "day desc"),
        ("case when flag then d else 1 end > 0.5 and coalesce(n, 1) = 1", "substring(name from 2 for 3)", "", ""),
        ("length(lower(name)) > 3 and cast(n as text) = '1' and wide / 3 > -price", "id", "", ""),
    ];
    for (index, (filter, select, aggregates, by)) in texts.into_iter().enumerate() {
        let list = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_string()] };
        let mut scan = ScanText {
            table: "t".into(),
            filter: Some(filter.into()),
            select: list(select),
            aggregates: list(aggregates),
            limit: (index % 2 == 0).then_some(10),
            ..ScanText::default()
        };
        if aggregates.is_empty() {
            scan.order_by = list(by)
        } else {
            scan.group_by = list(by)
        }
        write("plan", &format!("text-{index}"), &to_substrait(&parse_scan(&scan, &schema)?, &schema))?;
        write("plan", &format!("filter-{index}"), &filter_to_substrait(&parse_predicate(filter, &schema)?, &schema))?;
    }

    for (name, mechanism, key) in [("plain", 0, None), ("bound", 1, Some(&[7; 32]))] {
        let begun = client::begin("ada", "pencil", server::mechanisms(key.is_some()), key, "nonce")?;
        let (first, named) = (begun.message.clone(), begun.mechanism);
        let (_, challenge) = server::begin(named, &first, key)?.challenge(Verifier::of_nobody(b"fuzz", "ada"), "more");
        let last = begun.respond(&challenge)?.message;
        let mut bytes = vec![mechanism];
        for message in [&first, &last, &challenge, &b"v=AAAA".to_vec()] {
            bytes.extend((message.len() as u16).to_le_bytes());
            bytes.extend(message);
        }
        write("authentication", name, &bytes)?;
    }

    let mut stream = vec![40];
    let hello = proto::Hello { version_min: 1, version_max: 1, client_name: "seed".into(), ..Default::default() };
    stream.extend(encode_frame(FrameKind::Hello, 0, &hello, &[])?);
    let create = proto::CreateTable { name: "t".into(), schema: Some(convert::schema_to_proto(&schema)), shards: 2 };
    stream.extend(encode_frame(FrameKind::CreateTable, 1, &create, &[])?);
    let batch = proto::LoadBatch { load_id: vec![7; 16].into(), batch: 3, more: false, rows: 9 };
    stream.extend(encode_frame(FrameKind::LoadBatch, 2, &batch, b"payload")?);
    write("frame", "session", &stream)?;

    let free = proto::SlotsFree { link: 1, generation: 1, slots: vec![0, 3, 7] };
    let mut bytes = vec![0];
    bytes.extend(encode_frame(FrameKind::SlotsFree, 0, &free, &[])?);
    write("link", "slots-free", &bytes)?;
    let result = proto::FilteredResultSet { sequence: 1, rows: 2, ..Default::default() };
    let mut bytes = vec![0];
    bytes.extend(slot_head(FrameKind::FilteredResultSet, 7, &result, 70, payload_crc(&[9; 70]), 4096)?);
    bytes.extend([9; 70]);
    write("link", "slot", &bytes)?;

    for name in ["drive-random-read", "drive-mixed-open-loop", "file-verify"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/jobs").join(name).with_extension("fio");
        write("job_file", name, &fs::read(path)?)?;
    }
    let every = "[a]\nioengine=io_uring\nbssplit=4k/10:64k/50,8k/40:1m/\nrandom_distribution=zoned:60/10:40/90\nsize=(4*1g)\n\
         rate=1m,500k\noffset=20%\npercentile_list=50:99.9\ncpus_allowed=0,2-3\nruntime=1.5m\n";
    write("job_file", "values", every.as_bytes())?;

    chunks()?;
    index_objects()?;
    arrays()?;
    for (name, mut positions) in [("few", RoaringBitmap::from([0, 3, 70_000])), ("runs", (5..9000).collect())] {
        positions.optimize();
        let record = DeletionRecord::new(7, &positions);
        write("deletion", name, &record.encode_to_vec())?;
        write("deletion", &format!("{name}-bitmap"), &record.bitmap)?;
    }

    for rows in [0, 5] {
        let mut image = ImageWriter::new(&ImageLayout::new(&schema, true, 4096)?);
        for row in 0..rows {
            image.fixed_mut::<i64>(0)[row] = row as i64;
            image.set_null(1, row);
            image.push_bytes(5, b"text");
            image.set_null(9, row);
        }
        let message = schema_message(&schema, true);
        let image = image.finish(rows)?.bytes.into_bytes();
        let mut bytes = (message.len() as u16).to_le_bytes().to_vec();
        bytes.extend(message);
        bytes.extend_from_slice(&image);
        write("image", &format!("rows-{rows}"), &bytes)?;
        if rows > 0 {
            let batch = read_image(image, &to_arrow_schema(&schema, true))?;
            let group = encode_row_group(&schema, &[batch], RowIds::From(7))?;
            let identity =
                SegmentIdentity { volume_uuid: [1; 16], table_id: 2, segment_id: 3, shard: 1, load_id: vec![4; 16] };
            let mut segment = SegmentBuilder::new(identity, schema.clone());
            segment.push(group)?;
            write("segment_footer", "small", &segment.finish().tail)?;
        }
    }
    Ok(())
}

/// A chunk of every layout. The first byte is the type as `targets/chunk.rs` numbers them.
fn chunks() -> Result<(), Box<dyn std::error::Error>> {
    const ROWS: usize = 1100;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let words = ["special", "requests", "carefully", "final", "", "deposits"];
    let phrases: Vec<String> =
        (0..ROWS).map(|_| (0..3).map(|_| words[random(6) as usize]).collect::<Vec<_>>().join(" ") + "....").collect();
    let mut key = 0;
    let with_nulls = |row: usize| row % 7 != 3;
    let chunks: Vec<(&str, u8, &str, ArrayRef)> = vec![
        ("bitmap", 0, "boolean", Arc::new((0..ROWS).map(|_| Some(random(2) == 0)).collect::<BooleanArray>())),
        ("constant-boolean", 0, "boolean", Arc::new(BooleanArray::from(vec![true; ROWS]))),
        ("packed", 1, "int16", Arc::new((0..ROWS).map(|_| Some(random(700) as i16)).collect::<Int16Array>())),
        (
            "nulls",
            2,
            "int32",
            Arc::new((0..ROWS).map(|row| with_nulls(row).then(|| random(9) as i32)).collect::<Int32Array>()),
        ),
        (
            "delta",
            3,
            "int64",
            Arc::new(Int64Array::from_iter_values((0..ROWS).map(|_| {
                key += random(4) as i64;
                key
            }))),
        ),
        (
            "runs",
            3,
            "int64",
            Arc::new(Int64Array::from_iter_values((0..ROWS).map(|row| (row / 90 * 1_000_003) as i64))),
        ),
        (
            "dictionary-integers",
            3,
            "int64",
            Arc::new(Int64Array::from_iter_values(
                (0..ROWS).map(|_| (random(9) as i64).wrapping_mul(0x1234_5678_9abc_def1)),
            )),
        ),
        (
            "alp-single",
            4,
            "float32",
            Arc::new(Float32Array::from_iter_values((0..ROWS).map(|_| random(500) as f32 / 10.0))),
        ),
        (
            "alp",
            5,
            "float64",
            Arc::new(
                (0..ROWS)
                    .map(|row| {
                        with_nulls(row).then(|| if row % 100 == 9 { f64::NAN } else { random(900) as f64 / 100.0 })
                    })
                    .collect::<Float64Array>(),
            ),
        ),
        (
            "alp-split",
            4,
            "float32",
            Arc::new(Float32Array::from_iter_values((0..ROWS).map(|_| 1.0 + random(1 << 23) as f32 / 8_388_608.0))),
        ),
        (
            "plain-floats",
            4,
            "float32",
            Arc::new(Float32Array::from_iter_values((0..ROWS).map(|_| f32::from_bits(random(1 << 32) as u32)))),
        ),
        ("constant-float", 5, "float64", Arc::new(Float64Array::from(vec![-0.5; ROWS]))),
        (
            "narrow-decimal",
            7,
            "decimal(38,4)",
            Arc::new(
                Decimal128Array::from_iter_values((0..ROWS).map(|_| i128::from(random(900))))
                    .with_precision_and_scale(38, 4)?,
            ),
        ),
        (
            "plain-decimal",
            7,
            "decimal(38,4)",
            Arc::new(
                Decimal128Array::from_iter_values((0..200).map(|_| i128::from(random(u64::MAX)) << 40))
                    .with_precision_and_scale(38, 4)?,
            ),
        ),
        (
            "dictionary-text",
            8,
            "text",
            Arc::new(StringArray::from_iter_values((0..ROWS).map(|_| words[random(6) as usize]))),
        ),
        ("fsst", 8, "text", Arc::new(StringArray::from(phrases))),
        (
            "plain-text",
            9,
            "bytea",
            Arc::new(BinaryArray::from_iter_values((0..300).map(|_| random(1 << 40).to_le_bytes()))),
        ),
    ];
    for (name, kind, data_type, array) in chunks {
        let encoded = encode_chunk("c", &data_type.parse()?, &[array])?;
        let mut bytes = vec![kind];
        // Constants of the predicates: 3.5 as a float is a large integer and text.
        bytes.extend(3.5f64.to_le_bytes());
        bytes.extend(b"sdepl re");
        bytes.extend(encoded.bytes);
        write("chunk", name, &bytes)?;
        println!("chunk {name}: {} {} bytes", encoded.meta.encoding.name(), bytes.len());
    }
    Ok(())
}

/// Indexes of every element type, whole and as what `targets/indexes.rs` makes them of.
fn index_objects() -> std::io::Result<()> {
    let mut state = 7u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for (number, name) in (0u8..).zip(["f32", "f16", "i8", "bit"]) {
        // Bits, columns, lists, rows; element, metric. Then vectors and records; what is left overwrites bytes.
        let mut ivf = vec![2 * number, number + 2, 2, 19, number, number];
        ivf.extend((0..900).map(|_| random()));
        write("ivf", name, &[&[2 * number][..], &indexes::ivf(&mut Input(&ivf))[..]].concat())?;
        write("ivf", &format!("{name}-made"), &[&[2 * number + 1][..], &ivf[..]].concat())?;
        // Bits of codes, whether vectors are kept, degree, rows; element, metric.
        let mut graph = vec![number % 2, number / 2, 1, 30, number, number];
        graph.extend((0..200).map(|_| random()));
        let (rows, object) = indexes::graph(&mut Input(&graph));
        write("graph", name, &[&[0, rows as u8, 0][..], &object[..]].concat())?;
        write("graph", &format!("{name}-made"), &[&[1][..], &graph[..]].concat())?;
    }
    Ok(())
}

/// An array of three rows of two numbers in every format. The first bytes are what `targets/array.rs` says.
fn arrays() -> std::io::Result<()> {
    let numbers = [1.0f32, -2.5, 3.0, 0.0, 65.0, 7.0];
    let elements: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    for (name, descr, elements) in [
        ("f4", "<f4", &elements[..]),
        ("f4-big", ">f4", &elements[..]),
        ("f2", "<f2", &elements[..12]),
        ("u1", "|u1", &elements[..6]),
    ] {
        let dictionary = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (3, 2), }}\n");
        let mut npy = b"\x01\x01\x93NUMPY\x01\x00".to_vec();
        npy.extend((dictionary.len() as u16).to_le_bytes());
        npy.extend(dictionary.as_bytes());
        npy.extend(elements);
        write("array", &format!("{name}.npy"), &npy)?;
    }
    let rows = |how: u8, width: usize| {
        let mut bytes = vec![how, 1];
        elements.chunks(2 * width).take(3).for_each(|row| {
            bytes.extend(2u32.to_le_bytes());
            bytes.extend(row);
        });
        bytes
    };
    write("array", "fvecs", &rows(0, 4))?;
    write("array", "bvecs", &rows(3, 1))?;
    write("array", "json", b"\x01\x00[[1, -2.5], [3e0, 0], [65, 7]]")
}

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}
