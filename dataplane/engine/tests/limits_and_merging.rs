//! Memory budgets, cancellation, LIMIT, intermediate aggregates, pruning and explain.

mod reference;

use std::sync::Arc;

use heliostat_engine::{
    CompiledScan, CoreScan, EngineOptions, Step, aggregate::state::STATE_VERSION, merge_intermediate,
};
use hidb::plan::sql::{ScanText, parse_scan};
use hidb::plan::{Phase, ScanPlan};
use hidb::{DataType, ErrorCode, Scalar, Schema};
use reference::{Row, Table, field, reference, rows_of, sorted_text};

/// `n` counts up from 0 over all row groups; `k` has 5,000 values; `f` is a float; `t` one of three texts or NULL.
fn table(groups: usize, rows: usize) -> Table {
    let schema = Schema::new(vec![
        field("n", DataType::Int64),
        field("k", DataType::Int64),
        field("f", DataType::Float64),
        field("t", DataType::Text),
    ])
    .unwrap();
    let row = |n: i64| -> Row {
        vec![
            Scalar::I64(n),
            Scalar::I64(n * 7919 % 5000 * 100_003),
            Scalar::F64((n % 1000) as f64 * 0.1),
            match n % 4 {
                0 => Scalar::Null,
                other => Scalar::Bytes(format!("text {other}").into_bytes()),
            },
        ]
    };
    let groups = (0..groups).map(|group| (0..rows).map(|at| row((group * rows + at) as i64)).collect()).collect();
    Table::new(schema, groups)
}

fn plan(table: &Table, filter: &str, select: &str, group_by: &str) -> ScanPlan {
    let list = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_string()] };
    let scan = ScanText {
        table: "t".into(),
        filter: (!filter.is_empty()).then(|| filter.to_string()),
        select: list(select),
        group_by: list(group_by),
        ..ScanText::default()
    };
    parse_scan(&scan, &table.schema).unwrap()
}

#[test]
fn grouping_beyond_the_budget_is_an_error_that_names_operator_bytes_and_setting() {
    let table = table(3, 5000);
    let options = EngineOptions { memory_bytes_max: 100_000, ..EngineOptions::default() };
    for (select, group_by) in [("n, count(*)", "n"), ("count(distinct n)", "")] {
        let error = table.run(&plan(&table, "", select, group_by), 2, &options).unwrap_err();
        assert_eq!(error.code, ErrorCode::MemoryExceeded);
        for part in ["grouping", "100000 bytes", "request_memory"] {
            assert!(error.message.contains(part), "{}", error.message);
        }
    }
    let mut sorting = plan(&table, "", "n, t", "");
    sorting.sort = vec![hidb::plan::SortKey { output: 1, descending: false, nulls_first: false }];
    let error = table.run(&sorting, 1, &options).unwrap_err();
    assert!(error.code == ErrorCode::MemoryExceeded && error.message.contains("sorting"));
    // With a small LIMIT the same sort needs little, however many rows there are.
    sorting.limit = Some(10);
    let options = EngineOptions { memory_bytes_max: 400_000, ..EngineOptions::default() };
    let (batches, _) = table.run(&sorting, 1, &options).unwrap();
    assert_eq!(rows_of(&batches), reference(&sorting, &table).unwrap());
}

#[test]
fn memory_is_given_back_when_a_request_ends() {
    let table = table(2, 3000);
    let compiled =
        CompiledScan::compile(&plan(&table, "", "k, sum(n)", "k"), &table.schema, EngineOptions::default()).unwrap();
    let shared = compiled.shared();
    table.run_compiled(&compiled, &shared, 2).unwrap();
    assert_eq!(shared.memory_bytes(), 0);
}

fn intermediate(mut plan: ScanPlan) -> ScanPlan {
    let aggregation = plan.aggregation.as_mut().unwrap();
    aggregation.phase = Phase::Intermediate;
    let fields = aggregation.output_fields();
    plan.outputs = fields
        .iter()
        .enumerate()
        .map(|(index, (data_type, nullable))| hidb::plan::Output {
            name: format!("c{index}"),
            expr: hidb::plan::Expr::column(index, *data_type, *nullable),
        })
        .collect();
    plan.visible = plan.outputs.len();
    plan
}

#[test]
fn partial_groups_merge_to_the_answer_even_when_the_budget_made_them_come_in_pieces() {
    let table = table(2, 3000);
    let select =
        "k, t, count(*), count(t), count(distinct n % 10), sum(n), avg(n), sum(f), avg(f), min(t), max(f), min(n)";
    let single = plan(&table, "n % 3 <> 1", select, "k, t");
    let expected = sorted_text(&reference(&single, &table).unwrap());
    let partial = intermediate(single.clone());
    for memory_bytes_max in [256 << 20, 300_000] {
        for cores in [1, 2] {
            let options = EngineOptions { memory_bytes_max, image_bytes_max: 1 << 16, ..EngineOptions::default() };
            let (batches, stats) = table.run(&partial, cores, &options).unwrap();
            assert_eq!(stats.rows > expected.len() as u64, memory_bytes_max < 1 << 20, "{} rows", stats.rows);
            let merged = merge_intermediate(single.aggregation.as_ref().unwrap(), &batches).unwrap();
            assert_eq!(sorted_text(&rows_of(&[merged])), expected);
        }
    }
}

#[test]
fn intermediate_states_without_keys_or_rows_merge_to_one_group() {
    let table = table(1, 10);
    let single = plan(&table, "n < 0", "count(*), sum(n), min(t), avg(f)", "");
    let (batches, _) = table.run(&intermediate(single.clone()), 1, &EngineOptions::default()).unwrap();
    let merged = merge_intermediate(single.aggregation.as_ref().unwrap(), &batches).unwrap();
    assert_eq!(rows_of(&[merged]), vec![vec![Scalar::I64(0), Scalar::Null, Scalar::Null, Scalar::Null]]);
}

#[test]
fn malformed_states_are_refused() {
    let table = table(1, 10);
    let aggregation = plan(&table, "", "sum(n), min(t), sum(f), count(distinct t)", "").aggregation.unwrap();
    let good: [&[u8]; 4] = [
        &[STATE_VERSION, 2, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[STATE_VERSION, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[STATE_VERSION, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[STATE_VERSION, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    let merge = |states: [Vec<u8>; 4]| {
        let columns = states.iter().map(|state| {
            let values = vec![Some(state.as_slice())];
            let array: arrow_array::ArrayRef = Arc::new(arrow_array::BinaryArray::from(values));
            array
        });
        let names = (0..4).map(|i| format!("c{i}"));
        merge_intermediate(&aggregation, &[arrow_array::RecordBatch::try_from_iter(names.zip(columns)).unwrap()])
    };
    let states = || good.map(<[u8]>::to_vec);
    assert_eq!(rows_of(&[merge(states()).unwrap()])[0][0], Scalar::I64(5));
    for column in 0..4 {
        for length in 0..good[column].len() {
            let mut states = states();
            states[column].truncate(length);
            assert!(merge(states).is_err(), "column {column} cut to {length} bytes");
        }
        for (position, value) in [(0, 9u8), (1, 77), (9, 0x80), (10, 0xff)] {
            let mut states = states();
            if let Some(byte) = states[column].get_mut(position) {
                *byte = value;
                // Whatever comes out, nothing panics; version, kind and count are checked.
                let merged = merge(states);
                assert!(position == 10 || merged.is_err());
            }
        }
        let mut states = states();
        states[column].push(0);
        assert!(merge(states).is_err());
    }
}

#[test]
fn shapes_over_intermediate_states_are_refused_by_name() {
    let table = table(1, 10);
    let mut partial = intermediate(plan(&table, "", "k, count(*)", "k"));
    partial.limit = Some(1);
    let error = CompiledScan::compile(&partial, &table.schema, EngineOptions::default()).unwrap_err();
    assert!(error.code == ErrorCode::UnsupportedPlan && error.message.contains("LIMIT"));
}

#[test]
fn a_cancelled_scan_stops_at_its_next_step() {
    let table = table(1, 5000);
    let compiled =
        CompiledScan::compile(&plan(&table, "f > 1", "n", ""), &table.schema, EngineOptions::default()).unwrap();
    let shared = compiled.shared();
    let mut scan = CoreScan::new(compiled, shared.clone());
    scan.start_row_group(0, table.segments[0].0.clone(), 0, None).unwrap();
    assert!(matches!(scan.step(), Ok(Step::Need(columns)) if columns == [2]));
    shared.cancel();
    assert_eq!(scan.step().unwrap_err().code, ErrorCode::Cancelled);
}

#[test]
fn a_plain_limit_returns_that_many_rows_and_reads_no_further() {
    let table = table(4, 3000);
    let mut limited = plan(&table, "n >= 1000", "n", "");
    (limited.limit, limited.offset) = (Some(2500), 700);
    let (batches, stats) = table.run(&limited, 1, &EngineOptions::default()).unwrap();
    let rows = rows_of(&batches);
    let expected: Vec<Row> = (1700..4200).map(|n| vec![Scalar::I64(n)]).collect();
    assert_eq!(rows, expected);
    assert_eq!(stats.row_groups_total, 2);
}

#[test]
fn zone_maps_skip_row_groups_and_blocks_and_drop_predicates_that_always_hold() {
    let table = table(4, 3000);
    let options = EngineOptions::default();
    let (batches, stats) = table.run(&plan(&table, "n between 3500 and 3510", "n, f", ""), 1, &options).unwrap();
    assert_eq!(rows_of(&batches).len(), 11);
    assert_eq!((stats.row_groups_total, stats.row_groups_pruned), (4, 3));
    assert_eq!((stats.blocks_total, stats.blocks_pruned), (12, 11));
    // Nothing is read to decide what zone maps know: no column at all for a count.
    let (batches, stats) = table.run(&plan(&table, "n >= 0 and n + 1 < 1000000", "count(*)", ""), 1, &options).unwrap();
    assert_eq!(rows_of(&batches), vec![vec![Scalar::I64(12_000)]]);
    assert_eq!(stats.bytes_decoded, 0);
    // Through OR and arithmetic.
    let pruned = plan(&table, "(n < 0 or n * 2 > 100000) and f >= 0", "n", "");
    let compiled = CompiledScan::compile(&pruned, &table.schema, options).unwrap();
    for (footer, _) in &table.segments {
        assert!(!compiled.may_match(&footer.zones) && !compiled.row_group_may_match(&footer.row_groups[0]));
    }
    assert!(compiled.may_match(&[]), "without zone maps everything is possible");
}

#[test]
fn only_columns_of_surviving_rows_are_asked_for() {
    let table = table(1, 3000);
    let compiled =
        CompiledScan::compile(&plan(&table, "f = 0.05", "n, t", ""), &table.schema, EngineOptions::default()).unwrap();
    let mut scan = CoreScan::new(compiled.clone(), compiled.shared());
    let (footer, chunks) = &table.segments[0];
    scan.start_row_group(0, footer.clone(), 0, None).unwrap();
    let Step::Need(columns) = scan.step().unwrap() else { panic!("the filter's column was not asked for") };
    assert_eq!(columns, [2]);
    scan.supply(2, chunks[2].clone()).unwrap();
    loop {
        match scan.step().unwrap() {
            Step::Progress => {}
            Step::RowGroupDone => break,
            other => panic!("no row has f = 0.05, but {other:?}"),
        }
    }
}

/// A bitmap of so many rows in which those are set that `is_live` says.
fn bitmap(rows: usize, is_live: impl Fn(usize) -> bool) -> Option<Arc<[u64]>> {
    let word = |word: usize| (0..64).filter(|bit| is_live(word * 64 + bit)).fold(0u64, |word, bit| word | 1 << bit);
    Some((0..rows.div_ceil(64)).map(word).collect())
}

#[test]
fn rows_that_are_not_there_are_not_counted_and_cost_nothing() {
    let mut table = table(3, 3000);
    // None left, none left behind the first block, and every second row.
    table.among = vec![bitmap(3000, |_| false), bitmap(3000, |row| row < 10), bitmap(3000, |row| row % 2 == 0)];
    let options = EngineOptions::default();
    let (batches, stats) = table.run(&plan(&table, "", "count(*), min(n), max(n)", ""), 1, &options).unwrap();
    assert_eq!(rows_of(&batches), vec![vec![Scalar::I64(1510), Scalar::I64(3000), Scalar::I64(8998)]]);
    assert_eq!((stats.row_groups_total, stats.row_groups_pruned), (3, 1));
    assert_eq!((stats.blocks_total, stats.blocks_pruned), (9, 5));
    // A filter that zone maps prove still counts only what is there; nothing is read.
    let (batches, stats) = table.run(&plan(&table, "n >= 0", "count(*)", ""), 1, &options).unwrap();
    assert_eq!((rows_of(&batches), stats.bytes_decoded), (vec![vec![Scalar::I64(1510)]], 0));
    // LIMIT and OFFSET count what is there, too.
    let mut limited = plan(&table, "", "n", "");
    (limited.limit, limited.offset) = (Some(4), 8);
    let (batches, _) = table.run(&limited, 1, &options).unwrap();
    let expected: Vec<Row> = [3008, 3009, 6000, 6002].map(|n| vec![Scalar::I64(n)]).to_vec();
    assert_eq!(rows_of(&batches), expected);
}

#[test]
fn rows_that_are_not_there_raise_no_errors() {
    let mut table = table(1, 3000);
    let without = plan(&table, "100 / (n - 2000) >= 0", "count(*)", "");
    assert!(table.run(&without, 1, &EngineOptions::default()).is_err());
    table.among = vec![bitmap(3000, |row| row != 2000)];
    let (batches, _) = table.run(&without, 1, &EngineOptions::default()).unwrap();
    assert_eq!(rows_of(&batches), reference(&without, &table).unwrap());
    assert!(table.positions(without.filter.as_ref()).is_ok());
}

#[test]
fn a_scan_for_positions_reads_the_filter_only_and_only_where_rows_are_left() {
    let mut table = table(4, 3000);
    let question = plan(&table, "n between 3500 and 7000 and f = 0.5", "n", "");
    let (found, stats) = table.positions(question.filter.as_ref()).unwrap();
    let expected: Vec<bool> = (0..12_000).map(|n| (3500..=7000).contains(&n) && n % 1000 == 5).collect();
    assert_eq!(found, expected);
    assert_eq!((stats.row_groups_total, stats.row_groups_pruned), (4, 2));
    table.among = vec![None, bitmap(3000, |_| false), None, None];
    let (found, stats) = table.positions(question.filter.as_ref()).unwrap();
    assert_eq!(found.iter().filter(|found| **found).count(), 1);
    assert_eq!((stats.row_groups_pruned, stats.rows_selected), (3, 1));
    // Without a filter: what is there, without reading a byte.
    let (found, stats) = table.positions(None).unwrap();
    assert_eq!(found, table.live());
    assert_eq!(stats.bytes_decoded, 0);
}

#[test]
fn explain_names_predicates_places_and_bytes() {
    let table = table(4, 3000);
    let question = plan(&table, "n >= 9500 and t like 'text%' and n % 7 = 3", "k, sum(f)", "k");
    let compiled = CompiledScan::compile(&question, &table.schema, EngineOptions::default()).unwrap();
    let (text, stats) = compiled.explain(table.segments.iter().map(|(footer, _)| footer.as_ref()));
    for part in [
        "row groups 4, pruned by zone maps 3",
        "filter n >= 9500: on encoded data",
        ": on surviving rows\n",
        "read to filter: n",
        "read where rows survive: f",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!((stats.row_groups_total, stats.row_groups_pruned), (4, 3));
    assert!(stats.bytes_decoded > 0);
}

#[test]
fn corrupt_chunks_are_errors_that_name_segment_and_column() {
    let table = table(1, 3000);
    let question = plan(&table, "f > 1", "n", "");
    let compiled = CompiledScan::compile(&question, &table.schema, EngineOptions::default()).unwrap();
    let mut scan = CoreScan::new(compiled.clone(), compiled.shared());
    scan.start_row_group(0, table.segments[0].0.clone(), 0, None).unwrap();
    let error = scan.supply(2, bytes::Bytes::from_static(b"nonsense")).unwrap_err();
    assert_eq!(error.code, ErrorCode::Corruption);
    assert!(error.message.contains("segment 0") && error.message.contains("column f"), "{}", error.message);
    assert!(scan.supply(99, bytes::Bytes::new()).is_err());
}

#[test]
fn decimals_leave_as_decimal128_when_decimal64_was_not_agreed() {
    let schema = Schema::new(vec![field("d", DataType::Decimal { precision: 12, scale: 2 })]).unwrap();
    let row = |v: i64| vec![if v % 5 == 0 { Scalar::Null } else { Scalar::I64(v * 37 - 1000) }];
    let table = Table::new(schema, vec![(0..1500).map(row).collect()]);
    for select in ["d", "d, d + 1", "sum(d), min(d)"] {
        let question = plan(&table, "d < 20000 or d is null", select, "");
        let expected: Vec<Vec<Option<i128>>> =
            reference(&question, &table).unwrap().iter().map(|row| row.iter().map(Scalar::as_i128).collect()).collect();
        let options = EngineOptions { decimal64: false, ..EngineOptions::default() };
        let (batches, _) = table.run(&question, 1, &options).unwrap();
        assert!(
            batches[0]
                .schema()
                .fields()
                .iter()
                .all(|f| matches!(f.data_type(), arrow_schema::DataType::Decimal128(..)))
        );
        let got: Vec<Vec<Option<i128>>> =
            rows_of(&batches).iter().map(|row| row.iter().map(Scalar::as_i128).collect()).collect();
        assert_eq!(got, expected);
    }
}

#[test]
fn vectors_are_returned_as_they_were_stored() {
    use arrow_array::cast::AsArray;
    use arrow_array::{Array, FixedSizeListArray, Int64Array, RecordBatch};
    let vector = DataType::Vector { dimension: 3, element: hidb::VectorElement::F32 };
    let schema = Schema::new(vec![field("n", DataType::Int64), field("v", vector)]).unwrap();
    let arrow = hidb::arrow_mapping::to_arrow_schema(&schema, true);
    let value = |n: i64| (n % 7 != 0).then(|| (0..3).map(|i| Some((n * 3 + i) as f32)).collect::<Vec<_>>());
    let lists =
        FixedSizeListArray::from_iter_primitive::<arrow_array::types::Float32Type, _, _>((0..2000).map(value), 3);
    let arrow_schema::DataType::FixedSizeList(item, _) = arrow.field(1).data_type() else { panic!("not a list") };
    let lists = FixedSizeListArray::new(item.clone(), 3, lists.values().clone(), lists.nulls().cloned());
    let batch =
        RecordBatch::try_new(arrow, vec![Arc::new(Int64Array::from_iter_values(0..2000)), Arc::new(lists)]).unwrap();
    let table = Table::of_batches(schema, vec![batch]);
    let question = plan(&table, "n % 2 = 0 and v is not null", "n, v", "");
    let (batches, _) = table.run(&question, 1, &EngineOptions::default()).unwrap();
    let mut expected = (0..2000).filter(|n| n % 2 == 0 && n % 7 != 0);
    for batch in &batches {
        let numbers = batch.column(0).as_primitive::<arrow_array::types::Int64Type>();
        let vectors = batch.column(1).as_fixed_size_list();
        for row in 0..batch.num_rows() {
            let n = expected.next().unwrap();
            assert_eq!(numbers.value(row), n);
            let values = vectors.value(row);
            let values = values.as_primitive::<arrow_array::types::Float32Type>().values().to_vec();
            assert_eq!(values, (0..3).map(|i| (n * 3 + i) as f32).collect::<Vec<_>>());
        }
    }
    assert_eq!(expected.next(), None);
}

/// Row `n` has the vector with the number `n % 5`, or NULL; `w` is `v` of the row after it.
fn table_of_vectors(vector: DataType) -> Table {
    use arrow_array::{Int64Array, RecordBatch};
    let width = vector.fixed_width().unwrap();
    let schema = Schema::new(vec![field("n", DataType::Int64), field("v", vector), field("w", vector)]).unwrap();
    let column = |first: i64| {
        let numbers = (0..2000).map(|row| first + row);
        let bytes: Vec<u8> =
            numbers.clone().flat_map(|n| [&vec![0; width - 1][..], &[(n % 5) as u8]].concat()).collect();
        let nulls = numbers.map(|n| n % 7 != 0).collect();
        hidb::arrow_mapping::vector_array(&vector, 2000, bytes.into(), Some(nulls)).unwrap()
    };
    let columns = vec![Arc::new(Int64Array::from_iter_values(0..2000)) as _, column(0), column(1)];
    let arrow = hidb::arrow_mapping::to_arrow_schema(&schema, true);
    Table::of_batches(schema, vec![RecordBatch::try_new(arrow, columns).unwrap()])
}

#[test]
fn vectors_of_every_element_compare_for_equality_and_group() {
    use hidb::plan::{CompareOp, Expr, build};
    for text in ["vector(3,f32)", "vector(3,f16)", "vector(3,i8)", "vector(19,bit)"] {
        let vector: DataType = text.parse().unwrap();
        let table = table_of_vectors(vector);
        let width = vector.fixed_width().unwrap();
        let three = Scalar::Bytes([&vec![0; width - 1][..], &[3]].concat());
        let [v, w] = [1, 2].map(|index| Expr::column(index, vector, true));
        for (op, right, expected) in [
            (
                CompareOp::Equal,
                Expr::literal(three.clone(), vector),
                Box::new(|n: i64| n % 5 == 3) as Box<dyn Fn(i64) -> bool>,
            ),
            (CompareOp::NotEqual, Expr::literal(three, vector), Box::new(|n| n % 5 != 3)),
            (CompareOp::Equal, w.clone(), Box::new(|_| false)),
            (CompareOp::NotEqual, w, Box::new(|n| (n + 1) % 7 != 0)),
        ] {
            let mut question = plan(&table, "", "n", "");
            question.filter = Some(build::compare(op, v.clone(), right).unwrap());
            let (batches, _) = table.run(&question, 2, &EngineOptions::default()).unwrap();
            let mut got: Vec<i64> = rows_of(&batches).iter().map(|row| row[0].as_i128().unwrap() as i64).collect();
            got.sort_unstable();
            let expected: Vec<i64> = (0..2000).filter(|n| n % 7 != 0 && expected(*n)).collect();
            assert_eq!(got, expected, "{text} {op:?}");
        }
        assert_eq!(build::compare(CompareOp::Less, v.clone(), v).unwrap_err().code, ErrorCode::TypeMismatch);
        // Five vectors and NULL, also through what nodes hand on.
        let single = plan(&table, "", "v, count(*)", "v");
        assert_eq!(
            table.run(&single, 2, &EngineOptions::default()).unwrap().0.iter().map(|b| b.num_rows()).sum::<usize>(),
            6
        );
        let (batches, _) = table.run(&intermediate(single.clone()), 2, &EngineOptions::default()).unwrap();
        let merged = merge_intermediate(single.aggregation.as_ref().unwrap(), &batches).unwrap();
        assert_eq!(merged.num_rows(), 6, "{text}");
        assert_eq!(merged.column(0).data_type(), &hidb::arrow_mapping::to_arrow_type(&vector, true));
    }
}

/// One row group of random ids, whose filter has some seven bits a value: enough for one id, too few for fifty.
fn table_of_random_ids() -> (Table, Vec<i64>) {
    let mut state = 1u64;
    let mut random = || {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) as i64
    };
    let schema = Schema::new(vec![field("id", DataType::Int64), field("wide", DataType::Text)]).unwrap();
    let ids: Vec<i64> = (0..40_000).map(|_| random()).collect();
    let mut wide =
        |_: &i64| Scalar::Bytes((0..6).map(|_| format!("{:016x} ", random())).collect::<String>().into_bytes());
    let rows = ids.iter().map(|id| (Scalar::I64(*id), wide(id))).map(|(id, wide)| vec![id, wide]).collect();
    (Table::new(schema, vec![rows]), ids)
}

#[test]
fn a_membership_filter_that_comes_without_being_asked_for_is_passed_over() {
    let (table, ids) = table_of_random_ids();
    let (footer, chunks) = &table.segments[0];
    let number = heliostat_segment::membership_number(table.schema.len(), 0);
    assert!(footer.row_groups[0].part(number).is_some(), "no filter was made");
    let asked: Vec<String> = ids.iter().take(50).map(i64::to_string).collect();
    let plan = plan(&table, &format!("id in ({})", asked.join(", ")), "id", "");
    let compiled = CompiledScan::compile(&plan, &table.schema, EngineOptions::default()).unwrap();
    let mut scan = CoreScan::new(compiled.clone(), compiled.shared());
    scan.start_row_group(0, footer.clone(), 0, None).unwrap();
    let Step::Need(columns) = scan.step().unwrap() else { panic!("nothing is needed") };
    assert_eq!(columns, [0], "fifty values are not worth looking up");
    // Read-ahead brings what other row groups needed, in one fetch.
    for column in [number, 0] {
        scan.supply(column, chunks[column].clone()).unwrap();
    }
    while !matches!(scan.step().unwrap(), Step::RowGroupDone) {}
    assert_eq!(scan.stats().rows_selected, 50);
    let mut other = CoreScan::new(compiled.clone(), compiled.shared());
    other.start_row_group(0, footer.clone(), 0, None).unwrap();
    let error = other.supply(number + 1, chunks[0].clone()).unwrap_err();
    assert!(error.message.contains("was not asked for"), "a filter that is not there: {error}");
}

#[test]
fn a_membership_filter_of_a_later_version_rules_out_nothing_and_a_damaged_one_is_named() {
    let (table, ids) = table_of_random_ids();
    let (footer, chunks) = &table.segments[0];
    let number = heliostat_segment::membership_number(table.schema.len(), 0);
    let run = |filter: Vec<u8>, id: i64| -> hidb::Result<u64> {
        let plan = plan(&table, &format!("id = {id}"), "id", "");
        let compiled = CompiledScan::compile(&plan, &table.schema, EngineOptions::default()).unwrap();
        let mut scan = CoreScan::new(compiled.clone(), compiled.shared());
        scan.start_row_group(0, footer.clone(), 0, None).unwrap();
        assert!(matches!(scan.step().unwrap(), Step::Need(columns) if columns == [number]));
        scan.supply(number, filter.into())?;
        loop {
            match scan.step()? {
                Step::Need(columns) => columns.iter().try_for_each(|at| scan.supply(*at, chunks[*at].clone()))?,
                Step::RowGroupDone => return Ok(scan.stats().rows_selected),
                _ => {}
            }
        }
    };
    let mut later = chunks[number].to_vec();
    later[4] = 2;
    // A later version may do anything with the rest.
    later[64..].fill(0);
    assert_eq!(run(later, ids[77]), Ok(1));
    let error = run(vec![7; 4096], ids[77]).unwrap_err();
    assert_eq!(error.code, ErrorCode::Corruption);
    for part in ["segment 0", "row group 0", "membership filter of column \"id\""] {
        assert!(error.message.contains(part), "{error}");
    }
}
