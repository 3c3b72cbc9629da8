//! What the engine's tests compare with: a naive evaluator, a row at a time, and the driver that runs the engine.
#![allow(dead_code)]

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::*;
use bytes::Bytes;
use heliostat_engine::{CompiledScan, CoreScan, EngineOptions, Merge, ScanStats, SharedScan, Step};
use heliostat_segment::{RowIds, SegmentBuilder, SegmentFooter, SegmentIdentity, encode_row_group};
use hidb::plan::fold::evaluate;
use hidb::plan::{Aggregate, AggregateFunction, Expr, ScanPlan};
use hidb::types::compare_f64;
use hidb::{DataType, Field, Lane, Result, Scalar, Schema, decimal};

pub type Row = Vec<Scalar>;

/// A table as rows, and the same encoded: one segment per row group.
pub struct Table {
    pub schema: Schema,
    pub rows: Vec<Row>,
    pub segments: Vec<(Arc<SegmentFooter>, Vec<Bytes>)>,
    /// By segment, the rows that are there, as bitmaps; `None` (or missing): all.
    pub among: Vec<Option<Arc<[u64]>>>,
}

fn column<T: ArrowPrimitiveType>(
    values: &[Scalar],
    convert: impl Fn(&Scalar) -> Option<T::Native>,
) -> PrimitiveArray<T> {
    values.iter().map(convert).collect()
}

fn integer(value: &Scalar) -> Option<i128> {
    value.as_i128()
}

fn float(value: &Scalar) -> Option<f64> {
    if let Scalar::F64(value) = value { Some(*value) } else { None }
}

fn bytes(value: &Scalar) -> Option<&[u8]> {
    if let Scalar::Bytes(value) = value { Some(value) } else { None }
}

pub fn array(values: &[Scalar], data_type: &DataType) -> ArrayRef {
    match data_type {
        DataType::Boolean => {
            let bools = values.iter().map(|v| if let Scalar::Bool(v) = v { Some(*v) } else { None });
            Arc::new(bools.collect::<BooleanArray>())
        }
        DataType::Int16 => Arc::new(column::<Int16Type>(values, |v| integer(v).map(|v| v as i16))),
        DataType::Int32 => Arc::new(column::<Int32Type>(values, |v| integer(v).map(|v| v as i32))),
        DataType::Int64 => Arc::new(column::<Int64Type>(values, |v| integer(v).map(|v| v as i64))),
        DataType::Date => Arc::new(column::<Date32Type>(values, |v| integer(v).map(|v| v as i32))),
        DataType::Timestamp { utc } => Arc::new(
            column::<TimestampMicrosecondType>(values, |v| integer(v).map(|v| v as i64))
                .with_timezone_opt(utc.then_some("UTC")),
        ),
        DataType::Float32 => Arc::new(column::<Float32Type>(values, |v| float(v).map(|v| v as f32))),
        DataType::Float64 => Arc::new(column::<Float64Type>(values, float)),
        DataType::Decimal { precision, scale } if data_type.lane() == Lane::I64 => Arc::new(
            column::<Decimal64Type>(values, |v| integer(v).map(|v| v as i64))
                .with_precision_and_scale(*precision, *scale as i8)
                .unwrap(),
        ),
        DataType::Decimal { precision, scale } => Arc::new(
            column::<Decimal128Type>(values, integer).with_precision_and_scale(*precision, *scale as i8).unwrap(),
        ),
        DataType::Varchar(_) | DataType::Text => {
            Arc::new(values.iter().map(|v| bytes(v).map(|v| std::str::from_utf8(v).unwrap())).collect::<StringArray>())
        }
        DataType::Bytea => Arc::new(values.iter().map(bytes).collect::<BinaryArray>()),
        DataType::Vector { .. } => unimplemented!("vectors are tested elsewhere"),
    }
}

pub fn scalar(array: &dyn Array, row: usize) -> Scalar {
    use arrow_schema::DataType as A;
    if array.is_null(row) {
        return Scalar::Null;
    }
    match array.data_type() {
        A::Boolean => Scalar::Bool(array.as_boolean().value(row)),
        A::Int16 => Scalar::I64(array.as_primitive::<Int16Type>().value(row).into()),
        A::Int32 => Scalar::I64(array.as_primitive::<Int32Type>().value(row).into()),
        A::Int64 => Scalar::I64(array.as_primitive::<Int64Type>().value(row)),
        A::Date32 => Scalar::I64(array.as_primitive::<Date32Type>().value(row).into()),
        A::Timestamp(..) => Scalar::I64(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        A::Float32 => Scalar::F64(array.as_primitive::<Float32Type>().value(row).into()),
        A::Float64 => Scalar::F64(array.as_primitive::<Float64Type>().value(row)),
        A::Decimal64(..) => Scalar::I64(array.as_primitive::<Decimal64Type>().value(row)),
        A::Decimal128(..) => Scalar::I128(array.as_primitive::<Decimal128Type>().value(row)),
        A::Utf8 => Scalar::Bytes(array.as_string::<i32>().value(row).as_bytes().to_vec()),
        A::Binary => Scalar::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        other => panic!("unexpected {other}"),
    }
}

impl Table {
    pub fn new(schema: Schema, groups: Vec<Vec<Row>>) -> Table {
        let arrow = hidb::arrow_mapping::to_arrow_schema(&schema, true);
        let batch = |group: &Vec<Row>| {
            let arrays = schema.fields().iter().enumerate().map(|(index, field)| {
                let values: Vec<Scalar> = group.iter().map(|row| row[index].clone()).collect();
                array(&values, &field.data_type)
            });
            RecordBatch::try_new(arrow.clone(), arrays.collect()).unwrap()
        };
        let batches = groups.iter().map(batch).collect();
        let mut table = Self::of_batches(schema, batches);
        table.rows = groups.into_iter().flatten().collect();
        table
    }

    /// A table of one row group per batch, without rows for the reference.
    pub fn of_batches(schema: Schema, batches: Vec<RecordBatch>) -> Table {
        let mut segments = Vec::new();
        let mut first_rowid = 0;
        for (number, batch) in batches.into_iter().enumerate() {
            let rows = batch.num_rows() as i64;
            let encoded = encode_row_group(&schema, &[batch], RowIds::From(first_rowid)).unwrap();
            first_rowid += rows;
            let filters = encoded.chunks.iter().map(|chunk| chunk.membership.clone().unwrap_or_default());
            let chunks = encoded.chunks.iter().map(|chunk| chunk.bytes.clone()).chain(filters).map(Bytes::from);
            let chunks = chunks.collect();
            let identity = SegmentIdentity {
                volume_uuid: [7; 16],
                table_id: 1,
                segment_id: number as u64,
                shard: 0,
                load_id: b"load".to_vec(),
            };
            let mut builder = SegmentBuilder::new(identity, schema.clone());
            builder.push(encoded).unwrap();
            segments.push((Arc::new(builder.finish().footer), chunks));
        }
        Table { schema, rows: Vec::new(), segments, among: Vec::new() }
    }

    /// Runs a plan on so many cores, which take the row groups in turn.
    pub fn run(&self, plan: &ScanPlan, cores: usize, options: &EngineOptions) -> Result<(Vec<RecordBatch>, ScanStats)> {
        let compiled = CompiledScan::compile(plan, &self.schema, options.clone())?;
        let shared = compiled.shared();
        self.run_compiled(&compiled, &shared, cores)
    }

    fn among(&self, segment: usize) -> Option<Arc<[u64]>> {
        self.among.get(segment).cloned().flatten()
    }

    /// By row, in table order: whether it is there.
    pub fn live(&self) -> Vec<bool> {
        let of_segment = |(number, (footer, _)): (usize, &(Arc<SegmentFooter>, Vec<Bytes>))| {
            let among = self.among(number);
            let is_live = move |row: usize| match &among {
                Some(words) => words.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1),
                None => true,
            };
            (0..footer.row_groups[0].rows as usize).map(is_live).collect::<Vec<_>>()
        };
        self.segments.iter().enumerate().flat_map(of_segment).collect()
    }

    /// Where the rows are for which the filter is true, by row in table order, as the engine finds them.
    pub fn positions(&self, filter: Option<&Expr>) -> Result<(Vec<bool>, ScanStats)> {
        let compiled = CompiledScan::positions(filter, &self.schema, EngineOptions::default())?;
        let mut scan = CoreScan::new(compiled.clone(), compiled.shared());
        let mut found = Vec::new();
        for (ordinal, (footer, chunks)) in self.segments.iter().enumerate() {
            let rows = footer.row_groups[0].rows as usize;
            let start = found.len();
            found.resize(start + rows, false);
            scan.start_row_group(ordinal as u64, footer.clone(), 0, self.among(ordinal))?;
            let mut given = false;
            loop {
                match scan.step()? {
                    Step::Need(columns) => supply(&mut scan, &compiled, footer, chunks, columns)?,
                    Step::Rows(words) => {
                        assert!(!std::mem::replace(&mut given, true), "positions came twice");
                        assert_eq!(words.len(), rows.div_ceil(64));
                        assert!(words.iter().any(|word| *word != 0), "an empty bitmap");
                        for row in 0..words.len() * 64 {
                            let is_in = words[row / 64] >> (row % 64) & 1 == 1;
                            assert!(!is_in || row < rows, "row {row} of {rows}");
                            if is_in {
                                found[start + row] = true;
                            }
                        }
                    }
                    Step::Progress => {}
                    Step::RowGroupDone => break,
                    other => panic!("a scan for positions gave out {other:?}"),
                }
            }
        }
        let mut merge = Merge::new(compiled.clone(), compiled.shared());
        merge.push(scan.finish()?)?;
        assert!(merge.next_image()?.is_none(), "a scan for positions gave out an image");
        Ok((found, merge.stats()))
    }

    pub fn run_compiled(
        &self,
        compiled: &Arc<CompiledScan>,
        shared: &Arc<SharedScan>,
        cores: usize,
    ) -> Result<(Vec<RecordBatch>, ScanStats)> {
        let schema = hidb::arrow_mapping::to_arrow_schema(compiled.result_schema(), compiled.options().decimal64);
        let mut batches = Vec::new();
        let mut read = |image: hidb::image::ResultImage| {
            let rows = image.rows as usize;
            let batch = hidb::image::read_image(image.bytes.into_bytes(), &schema)?;
            assert_eq!(batch.num_rows(), rows);
            batches.push(batch);
            Ok::<_, hidb::Error>(())
        };
        let mut merge = Merge::new(compiled.clone(), shared.clone());
        for core in 0..cores {
            let mut scan = CoreScan::new(compiled.clone(), shared.clone());
            // The last core goes first, so that parts do not come in the order of row groups.
            let core = cores - 1 - core;
            'groups: for (ordinal, (footer, chunks)) in self.segments.iter().enumerate().skip(core).step_by(cores) {
                if shared.is_satisfied() {
                    break;
                }
                scan.start_row_group(ordinal as u64, footer.clone(), 0, self.among(ordinal))?;
                loop {
                    match scan.step()? {
                        Step::Need(columns) => supply(&mut scan, compiled, footer, chunks, columns)?,
                        Step::Image(image) => read(image)?,
                        Step::Rows(_) => panic!("positions were not asked for"),
                        Step::Progress => {}
                        Step::RowGroupDone => break,
                        Step::Finished => break 'groups,
                    }
                }
            }
            merge.push(scan.finish()?)?;
        }
        while let Some(image) = merge.next_image()? {
            read(image)?;
        }
        let stats = merge.stats();
        assert_eq!(stats.rows as usize, batches.iter().map(RecordBatch::num_rows).sum::<usize>());
        Ok((batches, stats))
    }
}

fn supply(
    scan: &mut CoreScan,
    compiled: &CompiledScan,
    footer: &SegmentFooter,
    chunks: &[Bytes],
    columns: Vec<usize>,
) -> Result<()> {
    assert!(!columns.is_empty());
    for column in columns {
        // Behind the columns come their membership filters.
        let read = column.checked_sub(footer.schema.len() + 1).unwrap_or(column);
        assert!(compiled.columns().contains(&read), "column {column} is not in the plan");
        scan.supply(column, chunks[column].clone())?;
    }
    Ok(())
}

pub fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    batches
        .iter()
        .flat_map(|batch| {
            (0..batch.num_rows()).map(|row| batch.columns().iter().map(|c| canonical(scalar(c, row))).collect())
        })
        .collect()
}

/// One NaN, one zero: what may differ between two right answers.
pub fn canonical(value: Scalar) -> Scalar {
    match value {
        Scalar::F64(v) if v.is_nan() => Scalar::F64(f64::NAN),
        Scalar::F64(0.0) => Scalar::F64(0.0),
        other => other,
    }
}

pub fn text_of(rows: &[Row]) -> Vec<String> {
    rows.iter().map(|row| format!("{row:?}")).collect()
}

pub fn sorted_text(rows: &[Row]) -> Vec<String> {
    let mut text = text_of(rows);
    text.sort();
    text
}

/// The rows (with their row ids) that are there and for which the filter is true; by row in table order.
pub fn passing(filter: Option<&Expr>, table: &Table) -> Result<Vec<Option<Row>>> {
    let passes = |((number, row), is_live): ((usize, &Row), bool)| {
        let mut row = row.clone();
        row.push(Scalar::I64(number as i64));
        let keep = match filter {
            Some(filter) if is_live => at(filter, &row)? == Scalar::Bool(true),
            _ => is_live,
        };
        Ok(keep.then_some(row))
    };
    table.rows.iter().enumerate().zip(table.live()).map(passes).collect()
}

/// The answer by definition: rows in table order; groups in order of their keys' text.
pub fn reference(plan: &ScanPlan, table: &Table) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = passing(plan.filter.as_ref(), table)?.into_iter().flatten().collect();
    if let Some(aggregation) = &plan.aggregation {
        let mut groups: BTreeMap<String, (Row, Vec<Row>)> = BTreeMap::new();
        if aggregation.keys.is_empty() {
            groups.insert(String::new(), (Vec::new(), Vec::new()));
        }
        for row in rows {
            let key = aggregation.keys.iter().map(|key| Ok(canonical(at(key, &row)?))).collect::<Result<Row>>()?;
            let name = if key.is_empty() { String::new() } else { format!("{key:?}") };
            groups.entry(name).or_insert_with(|| (key, Vec::new())).1.push(row);
        }
        rows = Vec::new();
        for (key, members) in groups.into_values() {
            let mut out = key;
            for aggregate in &aggregation.aggregates {
                out.push(aggregated(aggregate, &members)?);
            }
            let keep = match &plan.having {
                Some(having) => at(having, &out)? == Scalar::Bool(true),
                None => true,
            };
            if keep {
                rows.push(out);
            }
        }
    }
    let mut out = rows
        .iter()
        .map(|row| plan.outputs.iter().map(|output| at(&output.expr, row)).collect())
        .collect::<Result<Vec<Row>>>()?;
    out.sort_by(|a, b| {
        let order = |key: &hidb::plan::SortKey| {
            let (a, b) = (&a[key.output], &b[key.output]);
            match (a.is_null(), b.is_null()) {
                (true, true) => Ordering::Equal,
                (null, other) if null != other => {
                    if null == key.nulls_first {
                        Ordering::Less
                    } else {
                        Ordering::Greater
                    }
                }
                _ if key.descending => b.compare(a).unwrap(),
                _ => a.compare(b).unwrap(),
            }
        };
        plan.sort.iter().map(order).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    });
    let limit = plan.limit.map_or(usize::MAX, |limit| limit as usize);
    let visible = |row: Row| row.into_iter().take(plan.visible).map(canonical).collect();
    Ok(out.into_iter().skip(plan.offset as usize).take(limit).map(visible).collect())
}

fn at(expr: &Expr, row: &Row) -> Result<Scalar> {
    evaluate(expr, &|column| row[column].clone())
}

fn aggregated(aggregate: &Aggregate, rows: &[Row]) -> Result<Scalar> {
    let Some(argument) = &aggregate.argument else { return Ok(Scalar::I64(rows.len() as i64)) };
    let mut values = Vec::new();
    for row in rows {
        let value = canonical(at(argument, row)?);
        if !value.is_null() {
            values.push(value);
        }
    }
    let count = values.len() as i64;
    let overflow = || hidb::Error::new(hidb::ErrorCode::NumericOverflow, "reference");
    Ok(match aggregate.function {
        AggregateFunction::Count => Scalar::I64(count),
        AggregateFunction::CountDistinct => {
            let mut distinct: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
            distinct.sort();
            distinct.dedup();
            Scalar::I64(distinct.len() as i64)
        }
        _ if values.is_empty() => Scalar::Null,
        AggregateFunction::Min => values.into_iter().min_by(|a, b| a.compare(b).unwrap()).unwrap(),
        AggregateFunction::Max => values.into_iter().max_by(|a, b| a.compare(b).unwrap()).unwrap(),
        function if argument.data_type.lane() == Lane::F64 => {
            let sum = exact_sum(values.iter().map(|v| float(v).unwrap()));
            canonical(Scalar::F64(if function == AggregateFunction::Avg { sum / count as f64 } else { sum }))
        }
        function => {
            let mut sum = 0i128;
            for value in &values {
                sum = sum.checked_add(integer(value).unwrap()).ok_or_else(overflow)?;
            }
            let scale = hidb::cast::scale_of(&argument.data_type);
            match (function, &aggregate.data_type) {
                (AggregateFunction::Avg, DataType::Float64) => Scalar::F64(decimal::to_f64(sum, scale) / count as f64),
                (AggregateFunction::Avg, data_type) => {
                    let more = hidb::cast::scale_of(data_type) - scale;
                    let scaled = sum.checked_mul(decimal::power_of_ten(more).unwrap()).ok_or_else(overflow)?;
                    let average = decimal::divide_rounded(scaled, count.into()).unwrap();
                    hidb::cast::in_lane(average, data_type).ok_or_else(overflow)?
                }
                (_, data_type) => hidb::cast::in_lane(sum, data_type).ok_or_else(overflow)?,
            }
        }
    })
}

/// Shewchuk's expansion sum, rounded once, as Python's `math.fsum` does it.
pub fn exact_sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut parts: Vec<f64> = Vec::new();
    let mut special = 0.0;
    let mut is_special = false;
    for mut x in values {
        if !x.is_finite() {
            special += x;
            is_special = true;
            continue;
        }
        let mut kept = Vec::new();
        for &part in &parts {
            let (large, small) = if x.abs() < part.abs() { (part, x) } else { (x, part) };
            let high = large + small;
            let low = small - (high - large);
            if low != 0.0 {
                kept.push(low);
            }
            x = high;
        }
        kept.push(x);
        parts = kept;
    }
    if is_special {
        return special;
    }
    let Some(mut high) = parts.pop() else { return 0.0 };
    let mut low = 0.0;
    while let Some(part) = parts.pop() {
        let x = high;
        high = x + part;
        low = part - (high - x);
        if low != 0.0 {
            break;
        }
    }
    if let Some(next) = parts.last()
        && (low < 0.0 && *next < 0.0 || low > 0.0 && *next > 0.0)
    {
        let double = low * 2.0;
        let x = high + double;
        if double == x - high {
            high = x;
        }
    }
    high
}

pub fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

pub fn order(a: f64, b: f64) -> Ordering {
    compare_f64(a, b)
}
