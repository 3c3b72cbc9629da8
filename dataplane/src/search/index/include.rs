//! `INCLUDE` columns: values that lie beside the codes of an IVF index, so that a filter is evaluated by the read that
//! brings the codes.
//!
//! Owns [`Includes`] (which columns, and how their values travel through the builder) and [`ListFilter`] (evaluates a
//! condition on a list). Called by `build` and `ivf`.
//!
//! On its way into a list a row's values are a record: for each column a byte that says whether it is NULL, then its native
//! bytes ([`DataType::fixed_width`], a byte for booleans). In a list a column is a chunk, encoded as in a segment, and the scan
//! engine evaluates the condition on it as it does on a row group.
//!
//! Invariants
//! - The bits of a list are those that a scan of the table gives for the same rows.
//! - A list of more rows than a row group may have keeps no columns: conditions are evaluated by a scan then.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBuffer};
use arrow_data::ArrayData;
use bytes::Bytes;
use heliostat_engine::{CompiledScan, CoreScan, EngineOptions, Step};
use heliostat_segment::{Chunk, ChunkMeta, Encoding, RowGroupMeta, RowIds, SegmentFooter, ZoneMap, encode_row_group};
use heliostat_vector::ivf::INCLUDES_MAX;
use hidb::arrow_mapping::to_arrow_schema;
use hidb::plan::Expr;
use hidb::{DataType, Error, ErrorCode, Field, ROW_GROUP_ROWS, Result, Schema};

/// The columns that an index keeps beside its codes.
#[derive(Clone, Debug, Default)]
pub struct Includes {
    /// Their places in the table's schema.
    columns: Vec<usize>,
    fields: Vec<Field>,
}

fn value_bytes(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Vector { .. } => None,
        DataType::Boolean => Some(1),
        other => other.fixed_width(),
    }
}

impl Includes {
    /// The columns of these names.
    ///
    /// # Errors
    /// `UnknownColumn`; `UnsupportedType` for those without a fixed width; `InvalidParameter` for one named twice.
    pub fn new(table: &Schema, names: &[String]) -> Result<Includes> {
        let mut columns = Vec::with_capacity(names.len());
        let mut fields = Vec::with_capacity(names.len());
        for name in names {
            let (index, field) = table
                .find(name)
                .ok_or_else(|| Error::new(ErrorCode::UnknownColumn, format!("no column {name:?} to include")))?;
            if value_bytes(&field.data_type).is_none() {
                let text = format!(
                    "column {name:?} is {}: an index includes numbers, dates, timestamps and booleans, which have a fixed width",
                    field.data_type
                );
                return Err(Error::new(ErrorCode::UnsupportedType, text));
            }
            if columns.contains(&index) {
                return Err(Error::new(ErrorCode::InvalidParameter, format!("column {name:?} is included twice")));
            }
            columns.push(index);
            fields.push(field.clone());
        }
        if columns.len() > INCLUDES_MAX {
            let text = format!("{} columns to include: an index has at most {INCLUDES_MAX}", columns.len());
            return Err(Error::new(ErrorCode::LimitExceeded, text));
        }
        Ok(Includes { columns, fields })
    }

    /// Their places in the table's schema.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Their types.
    pub fn types(&self) -> impl Iterator<Item = DataType> {
        self.fields.iter().map(|field| field.data_type)
    }

    /// Bytes of a row's record.
    pub fn record_bytes(&self) -> usize {
        self.fields.iter().map(|field| 1 + value_bytes(&field.data_type).unwrap_or(0)).sum()
    }

    /// Appends the record of a row of canonical arrays.
    pub fn push_record(&self, arrays: &[ArrayRef], row: usize, records: &mut Vec<u8>) {
        for (array, field) in arrays.iter().zip(&self.fields) {
            let width = value_bytes(&field.data_type).unwrap_or(0);
            records.push(u8::from(array.is_valid(row)));
            let data = array.to_data();
            let at = data.offset() + row;
            let bytes = data.buffers()[0].as_slice();
            match field.data_type {
                DataType::Boolean => records.push(bytes[at / 8] >> (at % 8) & 1),
                _ => records.extend_from_slice(&bytes[at * width..][..width]),
            }
        }
    }

    /// The columns of a list as chunks, from its rows' records; empty for a list that is too long.
    ///
    /// # Errors
    /// None but defects.
    pub fn encode(&self, records: &[u8]) -> Result<Vec<Vec<u8>>> {
        let stride = self.record_bytes();
        if self.columns.is_empty() {
            return Ok(Vec::new());
        }
        let rows = records.len() / stride;
        if rows == 0 || rows > ROW_GROUP_ROWS {
            return Ok(vec![Vec::new(); self.columns.len()]);
        }
        let mut arrays = Vec::with_capacity(self.columns.len());
        let schema = Schema::of_result(self.fields.clone());
        let arrow = to_arrow_schema(&schema, true);
        let mut from = 0;
        for (field, arrow) in self.fields.iter().zip(arrow.fields()) {
            let width = value_bytes(&field.data_type).unwrap_or(0);
            let values = || records.chunks_exact(stride).map(|record| &record[from + 1..][..width]);
            let buffer = match field.data_type {
                DataType::Boolean => {
                    let mut bits = BooleanBufferBuilder::new(rows);
                    values().for_each(|value| bits.append(value[0] != 0));
                    bits.finish().into_inner()
                }
                _ => Buffer::from_vec(values().flatten().copied().collect::<Vec<u8>>()),
            };
            let valid: NullBuffer = records.chunks_exact(stride).map(|record| record[from] != 0).collect();
            let data = ArrayData::builder(arrow.data_type().clone()).len(rows).add_buffer(buffer);
            let data = data.nulls((valid.null_count() > 0).then_some(valid)).align_buffers(true).build();
            arrays.push(make_array(data.map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))?));
            from += 1 + width;
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(arrow, arrays, &options)
            .map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))?;
        let encoded = encode_row_group(&schema, &[batch], RowIds::From(0))?;
        Ok(encoded.chunks.into_iter().take(self.columns.len()).map(|chunk| chunk.bytes).collect())
    }
}

/// A condition that is evaluated on lists.
#[derive(Debug)]
pub struct ListFilter {
    compiled: Arc<CompiledScan>,
    scan: CoreScan,
    /// For each column of the table its place among the included ones.
    places: Vec<Option<usize>>,
    footer: SegmentFooter,
}

impl ListFilter {
    /// The condition, if all that it reads is included; `None` otherwise.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn new(
        includes: &Includes,
        filter: &Expr,
        table: &Schema,
        options: EngineOptions,
    ) -> Result<Option<ListFilter>> {
        let mut places = vec![None; table.len() + 1];
        for (place, column) in includes.columns.iter().enumerate() {
            places[*column] = Some(place);
        }
        if filter.columns().iter().any(|column| places.get(*column).is_none_or(Option::is_none)) {
            return Ok(None);
        }
        let compiled = CompiledScan::positions(Some(filter), table, options)?;
        let scan = CoreScan::new(compiled.clone(), compiled.shared());
        let footer = SegmentFooter {
            volume_uuid: [0; 16],
            table_id: 0,
            segment_id: 0,
            shard: 0,
            load_id: Vec::new(),
            length: 0,
            schema: table.clone(),
            row_groups: Vec::new(),
            zones: Vec::new(),
        };
        Ok(Some(ListFilter { compiled, scan, places, footer }))
    }

    /// Which rows of a list pass, as a bitmap; `None` when the list keeps no columns. `column` gives an included column's
    /// bytes.
    ///
    /// # Errors
    /// What the condition raises; `Corruption`.
    pub fn rows(&mut self, list: u32, rows: usize, column: impl Fn(usize) -> Bytes) -> Result<Option<Vec<u64>>> {
        if rows > ROW_GROUP_ROWS {
            return Ok(None);
        }
        let mut columns = Vec::with_capacity(self.places.len());
        let types = self.footer.schema.fields().iter().map(|field| field.data_type).chain([DataType::Int64]);
        for (place, data_type) in self.places.iter().zip(types) {
            let null_count = match place {
                Some(place) => Chunk::open(column(*place), &data_type, rows as u32)?.null_count(),
                // Nobody reads it.
                None => 0,
            };
            columns.push(ChunkMeta {
                offset: 0,
                length: 0,
                crc32c: 0,
                encoding: Encoding::Plain,
                zone: ZoneMap::unknown(rows as u32, null_count as u32),
                membership: None,
            });
        }
        let group = RowGroupMeta { rows: rows as u32, first_rowid: 0, columns };
        let footer = SegmentFooter { row_groups: vec![group], ..self.footer.clone() };
        self.scan.start_row_group(u64::from(list), Arc::new(footer), 0, None)?;
        let mut passing = vec![0; rows.div_ceil(64)];
        loop {
            match self.scan.step()? {
                Step::Need(columns) => {
                    for needed in columns {
                        let place = self.places.get(needed).copied().flatten();
                        let place = place.ok_or_else(|| {
                            let name = self.compiled.columns();
                            Error::new(ErrorCode::Internal, format!("column {needed} of {name:?} is not included"))
                        })?;
                        self.scan.supply(needed, column(place))?;
                    }
                }
                Step::Rows(bits) => {
                    passing.copy_from_slice(&bits);
                    self.scan.let_positions_go();
                    break;
                }
                Step::Progress => {}
                Step::Image(_) | Step::RowGroupDone | Step::Finished => break,
            }
        }
        Ok(Some(passing))
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{BooleanArray, Float64Array, Int32Array, Int64Array};
    use hidb::plan::sql::parse_predicate;
    use proptest::prelude::*;

    use super::*;

    fn table() -> Schema {
        let field = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
        let fields = vec![
            field("text", DataType::Text, true),
            field("small", DataType::Int32, true),
            field("big", DataType::Int64, false),
            field("flag", DataType::Boolean, true),
            field("real", DataType::Float64, true),
        ];
        Schema::new(fields).unwrap()
    }

    type Row = (Option<i32>, i64, Option<bool>, Option<f64>);

    /// The bitmap of a list of these rows.
    fn passing(rows: &[Row], filter: &str) -> Vec<bool> {
        let schema = table();
        let names = ["real", "small", "flag", "big"].map(String::from);
        let includes = Includes::new(&schema, &names).unwrap();
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(rows.iter().map(|row| row.3).collect::<Float64Array>()),
            Arc::new(rows.iter().map(|row| row.0).collect::<Int32Array>()),
            Arc::new(rows.iter().map(|row| row.2).collect::<BooleanArray>()),
            Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>()),
        ];
        let mut records = Vec::new();
        (0..rows.len()).for_each(|row| includes.push_record(&arrays, row, &mut records));
        assert_eq!(records.len(), rows.len() * includes.record_bytes());
        let columns: Vec<Bytes> = includes.encode(&records).unwrap().into_iter().map(Bytes::from).collect();
        let expr = parse_predicate(filter, &schema).unwrap();
        let filter = ListFilter::new(&includes, &expr, &schema, EngineOptions::default()).unwrap();
        let bits = filter.unwrap().rows(7, rows.len(), |column| columns[column].clone()).unwrap().unwrap();
        (0..rows.len()).map(|row| bits[row / 64] >> (row % 64) & 1 == 1).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_list_passes_the_rows_that_the_condition_says(
            rows in proptest::collection::vec(
                (proptest::option::of(-5i32..5), -3i64..3, proptest::option::of(any::<bool>()), proptest::option::of(-2.0f64..2.0)),
                1..3000,
            ),
        ) {
            type Case = (&'static str, fn(&Row) -> bool);
            let cases: [Case; 5] = [
                ("small >= 2 and big < 1", |row| row.0.is_some_and(|small| small >= 2) && row.1 < 1),
                ("small is null or flag", |row| row.0.is_none() || row.2 == Some(true)),
                ("real > 0.5 and not flag", |row| row.3.is_some_and(|real| real > 0.5) && row.2 == Some(false)),
                ("big in (0, 2)", |row| row.1 == 0 || row.1 == 2),
                ("big > 100", |_| false),
            ];
            for (filter, expected) in cases {
                let expected: Vec<bool> = rows.iter().map(expected).collect();
                prop_assert_eq!(passing(&rows, filter), expected, "{}", filter);
            }
        }
    }

    #[test]
    fn what_can_not_be_included_is_refused_and_other_conditions_are_left_to_scans() {
        let schema = table();
        let refused = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            Includes::new(&schema, &names).unwrap_err().code
        };
        assert_eq!(refused(&["text"]), ErrorCode::UnsupportedType);
        assert_eq!(refused(&["missing"]), ErrorCode::UnknownColumn);
        assert_eq!(refused(&["big", "big"]), ErrorCode::InvalidParameter);
        let includes = Includes::new(&schema, &["big".to_string()]).unwrap();
        for filter in ["small = 1", "big = 1 and text = 'a'", "_rowid < 5"] {
            let expr = parse_predicate(filter, &schema).unwrap();
            assert!(
                ListFilter::new(&includes, &expr, &schema, EngineOptions::default()).unwrap().is_none(),
                "{filter}"
            );
        }
    }
}
