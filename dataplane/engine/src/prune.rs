//! From zone maps to facts about columns.
//!
//! Owns the reading of [`ZoneMap`]s for [`crate::eval::facts`]. Called when a segment or row group starts.

use heliostat_segment::ZoneMap;
use hidb::types::Scalar;
use hidb::{DataType, Lane};

use crate::eval::facts::{Domain, Fact, type_range};

/// What a zone map says about a column.
pub(crate) fn fact_of_zone(zone: Option<&ZoneMap>, data_type: &DataType) -> Fact {
    let typed = || type_range(data_type).map_or(Domain::Unknown, |(min, max)| Domain::Integers(min, max));
    let Some(zone) = zone else { return Fact { domain: typed(), may_be_null: true } };
    let may_be_null = zone.null_count > 0;
    if zone.rows > 0 && zone.all_null() {
        return Fact { domain: Domain::Empty, may_be_null };
    }
    let domain = match (data_type.lane(), &zone.min, &zone.max) {
        (Lane::I64 | Lane::I128, min, max) => match (min.as_i128(), max.as_i128()) {
            (Some(min), Some(max)) => Domain::Integers(min, max),
            _ => typed(),
        },
        (Lane::F64, Scalar::F64(min), Scalar::F64(max)) => {
            // The zone's bounds leave NaN out; in the order of comparisons it is above everything.
            Domain::Floats(*min, if zone.has_nan { f64::NAN } else { *max })
        }
        (Lane::Bool, Scalar::Bool(min), Scalar::Bool(max)) => Domain::Truth(*max, !*min),
        (Lane::Bytes, Scalar::Bytes(min), max) if data_type.is_ordered() => {
            Domain::Bytes(min.clone(), if let Scalar::Bytes(max) = max { Some(max.clone()) } else { None })
        }
        _ => Domain::Unknown,
    };
    Fact { domain, may_be_null }
}
