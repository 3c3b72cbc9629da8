//! TPC-H tables, generated in process: one part per about half a million rows.

use std::str::FromStr;
use std::sync::Arc;

use hidb::{Error, ErrorCode, Result, Schema};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RecordBatchIterator, RegionArrow,
    SupplierArrow,
};

use super::Opened;
use super::columns::ColumnChoice;
use super::ordered::{InputBatch, Part, PartError};
use crate::load::LOAD_BATCH_ROWS;

/// Rows of one part: enough to be worth a thread, few enough to share out evenly.
const PART_ROWS: f64 = 500_000.0;

/// The largest scale factor the generator's 32-bit keys allow for.
const SCALE_MAX: f64 = 100_000.0;

/// The tables of TPC-H.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TpchTable {
    Region,
    Nation,
    Supplier,
    Customer,
    Part,
    PartSupp,
    Orders,
    LineItem,
}

impl TpchTable {
    /// All eight, smallest first.
    pub const ALL: [TpchTable; 8] = [
        TpchTable::Region,
        TpchTable::Nation,
        TpchTable::Supplier,
        TpchTable::Customer,
        TpchTable::Part,
        TpchTable::PartSupp,
        TpchTable::Orders,
        TpchTable::LineItem,
    ];

    /// The table's name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            TpchTable::Region => "region",
            TpchTable::Nation => "nation",
            TpchTable::Supplier => "supplier",
            TpchTable::Customer => "customer",
            TpchTable::Part => "part",
            TpchTable::PartSupp => "partsupp",
            TpchTable::Orders => "orders",
            TpchTable::LineItem => "lineitem",
        }
    }

    /// Rows at a scale factor; about, for lineitem.
    pub fn rows(self, scale: f64) -> u64 {
        let per_scale = match self {
            TpchTable::Region => return 5,
            TpchTable::Nation => return 25,
            TpchTable::Supplier => 10_000.0,
            TpchTable::Customer => 150_000.0,
            TpchTable::Part => 200_000.0,
            TpchTable::PartSupp => 800_000.0,
            TpchTable::Orders => 1_500_000.0,
            TpchTable::LineItem => 6_000_000.0,
        };
        (per_scale * scale) as u64
    }

    fn generate(self, scale: f64, part: i32, parts: i32) -> Box<dyn RecordBatchIterator> {
        let rows = LOAD_BATCH_ROWS;
        match self {
            TpchTable::Region => {
                Box::new(RegionArrow::new(RegionGenerator::new(scale, part, parts)).with_batch_size(rows))
            }
            TpchTable::Nation => {
                Box::new(NationArrow::new(NationGenerator::new(scale, part, parts)).with_batch_size(rows))
            }
            TpchTable::Supplier => {
                Box::new(SupplierArrow::new(SupplierGenerator::new(scale, part, parts)).with_batch_size(rows))
            }
            TpchTable::Customer => {
                Box::new(CustomerArrow::new(CustomerGenerator::new(scale, part, parts)).with_batch_size(rows))
            }
            TpchTable::Part => Box::new(PartArrow::new(PartGenerator::new(scale, part, parts)).with_batch_size(rows)),
            TpchTable::PartSupp => {
                Box::new(PartSuppArrow::new(PartSuppGenerator::new(scale, part, parts)).with_batch_size(rows))
            }
            TpchTable::Orders => {
                Box::new(OrderArrow::new(OrderGenerator::new(scale, part, parts)).with_batch_size(rows))
            }
            TpchTable::LineItem => {
                Box::new(LineItemArrow::new(LineItemGenerator::new(scale, part, parts)).with_batch_size(rows))
            }
        }
    }
}

impl FromStr for TpchTable {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        TpchTable::ALL.into_iter().find(|table| table.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let names: Vec<&str> = TpchTable::ALL.iter().map(|table| table.name()).collect();
            Error::new(
                ErrorCode::InvalidParameter,
                format!("TPC-H has no table {text:?}: choose one of {}", names.join(", ")),
            )
        })
    }
}

pub(super) fn open(table: TpchTable, scale: f64, wanted: Option<&Schema>) -> Result<Opened> {
    if !(scale > 0.0 && scale <= SCALE_MAX) {
        return Err(Error::new(
            ErrorCode::InvalidParameter,
            format!("the TPC-H scale factor {scale} is not between 0 and {SCALE_MAX}: 1 is about 1 GB in all"),
        ));
    }
    let rows = table.rows(scale);
    let count = (rows as f64 / PART_ROWS).ceil().max(1.0) as i32;
    let schema = table.generate(scale, 1, count).schema().clone();
    let choice = Arc::new(ColumnChoice::new(std::path::Path::new(table.name()), &schema, wanted)?);
    let parts = (1..=count)
        .map(|part| {
            let choice = choice.clone();
            let decode = move |emit: &mut super::ordered::Emit<'_>| {
                for batch in table.generate(scale, part, count) {
                    let rows = choice.adapt(&batch, 0).map_err(PartError::Failed)?;
                    let units = rows.num_rows() as u64;
                    emit(InputBatch { rows, units })?;
                }
                Ok(())
            };
            Part { name: format!("TPC-H {}, part {part}", table.name()), decode: Box::new(decode) }
        })
        .collect();
    let exact = table != TpchTable::LineItem;
    Ok(Opened { schema: choice.schema.clone(), units: rows, rows: exact.then_some(rows), parts })
}

#[cfg(test)]
mod tests {
    use super::super::{Input, InputOptions};
    use super::*;

    #[test]
    fn all_eight_tables_come_with_the_rows_of_the_specification() {
        let expected = [5, 25, 100, 1_500, 2_000, 8_000, 15_000, 60_175];
        for (table, rows) in TpchTable::ALL.into_iter().zip(expected) {
            let input = Input::tpch(table, 0.01, InputOptions::default()).unwrap();
            let schema = input.schema().clone();
            let mut got = 0;
            for batch in input.batches().unwrap() {
                let batch = batch.unwrap();
                assert_eq!(batch.rows.num_columns(), schema.len());
                got += batch.rows.num_rows();
            }
            assert_eq!(got, rows, "{}", table.name());
        }
    }

    #[test]
    fn parts_make_the_same_rows_in_the_same_order_as_one() {
        use arrow_array::{cast::AsArray, types::Int64Type};
        let keys = |parts: i32| -> Vec<i64> {
            (1..=parts)
                .flat_map(|part| TpchTable::Orders.generate(0.01, part, parts))
                .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
                .collect()
        };
        assert_eq!(keys(1), keys(7));
    }
}
