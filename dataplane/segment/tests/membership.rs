//! Membership filters: what was put in is found, what they rule out is not there, and bytes that lie are errors.

use std::sync::Arc;

use arrow_array::{ArrayRef, Date32Array, Decimal64Array, Decimal128Array, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use heliostat_segment::*;
use hidb::schema::{Field, Schema};
use hidb::types::DataType;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 40_000;

fn uuid(rng: &mut ChaCha8Rng) -> String {
    let (a, b): (u64, u64) = (rng.random(), rng.random());
    format!("{:08x}-{:04x}-{:04x}-{:016x}", a >> 32, a >> 16 & 0xffff, a & 0xffff, b)
}

/// One row group of these columns, wide enough for filters of all of them: `wide` is ballast.
fn encode(columns: Vec<(&str, DataType, ArrayRef)>) -> (Schema, EncodedRowGroup) {
    let rows = columns[0].2.len();
    let mut rng = ChaCha8Rng::seed_from_u64(99);
    let ballast: Vec<String> = (0..rows).map(|_| (0..10).map(|_| uuid(&mut rng) + " ").collect()).collect();
    let ballast: ArrayRef = Arc::new(StringArray::from(ballast));
    let columns: Vec<_> = columns.into_iter().chain([("wide", DataType::Text, ballast)]).collect();
    let fields = columns.iter().map(|(name, data_type, _)| Field::new(*name, *data_type, true));
    let schema = Schema::new(fields.collect()).unwrap();
    let arrays = columns.into_iter().map(|(name, _, array)| (name, array, true));
    let batch = RecordBatch::try_from_iter_with_nullable(arrays).unwrap();
    let group = encode_row_group(&schema, &[batch], RowIds::From(0)).unwrap();
    (schema, group)
}

fn filter(group: &EncodedRowGroup, column: usize) -> Option<MembershipFilter> {
    let chunk = &group.chunks[column];
    assert_eq!(chunk.membership.is_some(), chunk.meta.membership.is_some());
    chunk.membership.clone().map(|bytes| MembershipFilter::open(bytes.into()).unwrap())
}

#[test]
fn random_keys_of_every_type_get_a_filter_that_holds_them_and_little_else() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let ids: Vec<Option<i64>> = (0..ROWS).map(|_| rng.random_bool(0.9).then(|| rng.random())).collect();
    let names: Vec<String> = (0..ROWS).map(|_| uuid(&mut rng)).collect();
    let numbers: Vec<i64> = (0..ROWS).map(|_| rng.random_range(0..10i64.pow(17))).collect();
    let wide: Vec<i128> = (0..ROWS).map(|_| rng.random_range(0..10i128.pow(30))).collect();
    let decimal = |precision, scale| DataType::Decimal { precision, scale };
    let (schema, group) = encode(vec![
        ("id", DataType::Int64, Arc::new(Int64Array::from(ids.clone()))),
        ("name", DataType::Text, Arc::new(StringArray::from(names.clone()))),
        ("n", decimal(18, 0), Arc::new(Decimal64Array::from(numbers.clone()).with_precision_and_scale(18, 0).unwrap())),
        ("w", decimal(38, 0), Arc::new(Decimal128Array::from(wide.clone()).with_precision_and_scale(38, 0).unwrap())),
    ]);
    let total: usize = group.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
    let filters: Vec<_> = (0..4).map(|column| filter(&group, column).expect("a filter")).collect();
    assert!(filter(&group, 4).is_none(), "nobody asks for prose by equality");
    let bytes: usize = group.chunks.iter().filter_map(|chunk| chunk.membership.as_ref()).map(Vec::len).sum();
    assert!(bytes * 25 <= total, "{bytes} of {total}");

    assert!(ids.iter().flatten().all(|id| filters[0].may_hold(hash_i64(*id))));
    assert!(names.iter().all(|name| filters[1].may_hold(hash_bytes(name.as_bytes()))));
    assert!(numbers.iter().all(|number| filters[2].may_hold(hash_i64(*number))));
    assert!(wide.iter().all(|number| filters[3].may_hold(hash_i128(*number))));

    let absent: Vec<[u64; 4]> = (0..20_000)
        .map(|_| {
            let name = uuid(&mut rng);
            [hash_i64(rng.random()), hash_bytes(name.as_bytes()), hash_i64(rng.random()), hash_i128(rng.random())]
        })
        .collect();
    for (column, filter) in filters.iter().enumerate() {
        let passed = absent.iter().filter(|hashes| filter.may_hold(hashes[column])).count();
        let meta = group.chunks[column].meta.membership.unwrap();
        let (measured, expected) = (passed as f64 / absent.len() as f64, meta.false_positive_rate());
        assert!(measured < 0.17 && (measured - expected).abs() < 0.02, "{measured} is not {expected}");
        assert!((meta.values as usize).abs_diff(ROWS) < ROWS / 8, "{} values", meta.values);
        assert!(meta.pays_for(1) && !meta.pays_for(1000));
    }
    assert_eq!(schema.len(), 5);
}

#[test]
fn columns_that_a_filter_would_not_help_get_none() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut int = |f: &mut dyn FnMut(usize, &mut ChaCha8Rng) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values((0..ROWS).map(|row| f(row, &mut rng))))
    };
    let (_, group) = encode(vec![
        ("grows", DataType::Int64, int(&mut |row, rng| (row as i64) << 40 | rng.random_range(0..1 << 38))),
        ("few", DataType::Int64, int(&mut |_, rng| rng.random_range(0..5000) << 40)),
        ("dense", DataType::Int64, int(&mut |_, rng| rng.random_range(0..50_000))),
        ("pages", DataType::Int64, int(&mut |row, rng| (row as i64 / 4000) << 50 | rng.random_range(0..1 << 40))),
    ]);
    for column in 0..4 {
        assert!(filter(&group, column).is_none(), "column {column}");
    }
    let days = Arc::new(Date32Array::from_iter_values((0..ROWS as i32).map(|row| row * 7919 % 2500)));
    let (_, group) = encode(vec![("day", DataType::Date, days)]);
    assert!(filter(&group, 0).is_none(), "all days are in every row group");
}

#[test]
fn filters_lie_behind_the_chunks_of_their_row_group_and_are_read_back() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let ids: Vec<i64> = (0..ROWS).map(|_| rng.random()).collect();
    let (schema, group) = encode(vec![("id", DataType::Int64, Arc::new(Int64Array::from(ids.clone())))]);
    let identity = SegmentIdentity { volume_uuid: [9; 16], table_id: 3, segment_id: 77, shard: 5, load_id: Vec::new() };
    let mut builder = SegmentBuilder::new(identity, schema);
    let mut bytes = vec![0u8; PAGE_BYTES];
    for _ in 0..2 {
        bytes.extend(builder.push(group.clone()).unwrap());
        assert_eq!(builder.position(), bytes.len() as u64);
    }
    let finished = builder.finish();
    bytes.extend(&finished.tail);
    let footer = read_footer(&bytes).unwrap();
    assert_eq!(format!("{footer:?}"), format!("{:?}", finished.footer));
    for group in &footer.row_groups {
        let number = membership_number(footer.schema.len(), 0);
        let part = group.part(number).unwrap();
        assert!(group.columns.iter().all(|chunk| chunk.offset < part.offset));
        let stored = &bytes[part.offset as usize..][..part.length as usize];
        verify_membership(&group.columns[0].membership.unwrap(), stored).unwrap();
        let filter = MembershipFilter::open(Bytes::copy_from_slice(stored)).unwrap();
        assert!(ids.iter().all(|id| filter.may_hold(hash_i64(*id))));
        assert_eq!(group.part(membership_number(footer.schema.len(), footer.schema.len())), None, "row ids have none");
        assert_eq!(group.part(0).unwrap().offset, group.columns[0].offset);
        let mut damaged = stored.to_vec();
        damaged[5000] ^= 4;
        assert!(verify_membership(&group.columns[0].membership.unwrap(), &damaged).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn no_value_that_is_there_is_ruled_out(seed: u64, rows in 20_000usize..60_000, nulls in 0.0f64..0.3, length in 9usize..40) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let text: Vec<Option<String>> = (0..rows)
            .map(|_| (!rng.random_bool(nulls)).then(|| (0..length).map(|_| rng.random_range('!'..='~')).collect()))
            .collect();
        let numbers: Vec<Option<i64>> = (0..rows).map(|_| (!rng.random_bool(nulls)).then(|| rng.random())).collect();
        let (_, group) = encode(vec![
            ("t", DataType::Text, Arc::new(StringArray::from(text.clone()))),
            ("n", DataType::Int64, Arc::new(Int64Array::from(numbers.clone()))),
        ]);
        if let Some(filter) = filter(&group, 0) {
            prop_assert!(text.iter().flatten().all(|text| filter.may_hold(hash_bytes(text.as_bytes()))));
        }
        if let Some(filter) = filter(&group, 1) {
            prop_assert!(numbers.iter().flatten().all(|number| filter.may_hold(hash_i64(*number))));
        }
    }

    #[test]
    fn arbitrary_bytes_are_a_filter_or_an_error(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        honest in any::<bool>(),
        hashes in proptest::collection::vec(any::<u64>(), 0..50),
    ) {
        if honest && bytes.len() > 12 {
            let probes = bytes[5] % 9;
            bytes[..8].copy_from_slice(&[b'H', b'S', b'M', b'F', 1, probes, 0, 0]);
            bytes[9..12].fill(0);
        }
        if let Ok(filter) = MembershipFilter::open(bytes.into()) {
            for hash in &hashes {
                filter.may_hold(*hash);
            }
            filter.may_hold_any(&hashes);
        }
    }
}

#[test]
fn only_questions_for_few_known_values_are_looked_up() {
    let range = |lo, hi, negated| ChunkPredicate::I64Range { lo, hi, negated };
    assert_eq!(range(5, 5, false).member_hashes(), Some(vec![hash_i64(5)]));
    assert_eq!(range(5, 6, false).member_hashes(), None);
    assert_eq!(range(5, 5, true).member_hashes(), None);
    let set = |count: i64, negated| ChunkPredicate::I64Set { values: (0..count).collect(), negated };
    assert_eq!(set(3, false).member_hashes().map(|hashes| hashes.len()), Some(3));
    assert_eq!(set(0, false).member_hashes(), Some(vec![]));
    assert_eq!(set(3, true).member_hashes(), None);
    assert_eq!(set(1000, false).member_hashes(), None);
    let text = ChunkPredicate::BytesSet { values: vec![b"x".to_vec()].into(), negated: false };
    assert_eq!(text.member_hashes(), Some(vec![hash_bytes(b"x")]));
    assert_eq!(ChunkPredicate::IsNull.member_hashes(), None);
}

#[test]
fn hashes_are_part_of_the_format() {
    // Written once: a build that computes others would not find what is stored.
    let long = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let hashes = [hash_i64(0), hash_i64(-1), hash_i64(42), hash_i128(1 << 100), hash_bytes(b""), hash_bytes(long)];
    let expected = [
        0xaf72_a591_6eaf_fa97,
        0x9b5c_55cc_4315_0a2f,
        0xe432_aa97_0f28_db0f,
        0x0efb_8098_c49d_6706,
        0xaf72_a591_6eaf_fa97,
        0x5fe2_33f2_7a2e_ecb0,
    ];
    assert_eq!(hashes, expected, "{hashes:#018x?}");
}
