//! Writes the seed corpora: `cd fuzz && cargo run --example seeds`.

use std::fs;
use std::path::Path;

use heliostat_segment::{RowIds, SegmentBuilder, SegmentIdentity, encode_row_group};
use hidb::arrow_mapping::to_arrow_schema;
use hidb::auth::scram::{Verifier, client, server};
use hidb::frame::{FrameKind, encode_frame, payload_crc};
use hidb::image::{ImageLayout, ImageWriter, read_image, schema_message};
use hidb::plan::sql::{ScanText, parse_scan};
use hidb::plan::substrait::to_substrait;
use hidb::session::frames::slot_head;
use hidb::{Field, Schema, convert, proto};

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

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}
