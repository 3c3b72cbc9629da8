//! Row groups that hold none of the values a question asks for, by their membership filters.
//!
//! Owns [`Lookups`]: what a compiled filter looks up, and where. Called by `core_scan`, which asks for the filters as
//! it asks for chunks, under the numbers of [`heliostat_segment::membership_number`].
//!
//! Invariants
//! - Only conjuncts of which a row needs one of few known values are looked up, so a filter that holds none of them
//!   rules out the row group whatever the rest of the question says.
//! - A filter is asked for only where zone maps leave the row group in, and where it is expected to save more than it
//!   costs to read.

use bytes::Bytes;
use heliostat_segment::{MembershipFilter, MembershipMeta, RowGroupMeta, SegmentError};
use hidb::{Result, Schema};

use crate::filter::FilterPlan;

/// One conjunct that asks for few values of a column.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub column: usize,
    hashes: Vec<u64>,
}

/// All of a filter's.
#[derive(Debug, Default)]
pub(crate) struct Lookups(Vec<Lookup>);

impl Lookups {
    pub fn of(plan: &FilterPlan, schema: &Schema) -> Self {
        let lookups = plan.conjuncts.iter().filter_map(|conjunct| {
            let (column, predicate) = conjunct.encoded.as_ref()?;
            let hashes = predicate.member_hashes()?;
            (*column < schema.len()).then_some(Lookup { column: *column, hashes })
        });
        Lookups(lookups.collect())
    }

    /// Those worth making in a row group, with their filters.
    pub fn in_row_group<'a>(
        &'a self,
        meta: &'a RowGroupMeta,
    ) -> impl Iterator<Item = (&'a Lookup, MembershipMeta)> + 'a {
        self.0.iter().filter_map(|lookup| {
            let filter = meta.columns.get(lookup.column)?.membership?;
            filter.pays_for(lookup.hashes.len()).then_some((lookup, filter))
        })
    }
}

impl Lookup {
    /// Whether the row group of this filter can hold one of the values; a filter of a version that this build does not
    /// know rules out nothing.
    ///
    /// # Errors
    /// [`hidb::ErrorCode::Corruption`] when this is no filter.
    pub fn may_match(&self, filter: Bytes) -> Result<bool> {
        match MembershipFilter::open(filter) {
            Err(SegmentError::UnsupportedVersion(_)) => Ok(true),
            opened => Ok(opened?.may_hold_any(&self.hashes)),
        }
    }

    /// The share of row groups without any of the values that this filter leaves in.
    pub fn pass_share(&self, filter: &MembershipMeta) -> f64 {
        filter.pass_share(self.hashes.len())
    }
}
