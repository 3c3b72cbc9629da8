//! What a scan would do, as text, without reading a row.
//!
//! Owns [`CompiledScan::explain`]. Called for `heliostat explain`.

use std::collections::BTreeMap;
use std::fmt::Write;

use heliostat_segment::SegmentFooter;

use crate::compile::CompiledScan;
use crate::eval::facts;
use crate::options::ScanStats;

impl CompiledScan {
    /// Predicates in their first order and where they run, what zone maps rule out in these segments, and what
    /// would be read of which column (an upper bound: blocks are not looked at); the same as counters, with
    /// `bytes_decoded` the bytes that would be read.
    pub fn explain<'a>(&self, segments: impl Iterator<Item = &'a SegmentFooter>) -> (String, ScanStats) {
        let mut always = vec![0u64; self.filter.conjuncts.len()];
        let (mut groups, mut pruned, mut rows, mut rows_left) = (0u64, 0u64, 0u64, 0u64);
        let mut filter_bytes = vec![0u64; self.schema.len() + 1];
        let mut body_bytes = vec![0u64; self.schema.len() + 1];
        let mut stats = ScanStats::default();
        let mut known = Vec::new();
        let mut segment_count = 0u64;
        // Per column: row groups whose membership filter is asked, its bytes, and how many are expected to pass.
        let mut memberships: BTreeMap<usize, (u64, u64, f64)> = BTreeMap::new();
        for footer in segments {
            segment_count += 1;
            for meta in &footer.row_groups {
                groups += 1;
                let blocks = meta.blocks() as u64;
                stats.blocks_total += blocks;
                rows += u64::from(meta.rows);
                let fact = |column: usize| self.column_fact(column, meta.columns.get(column).map(|chunk| &chunk.zone));
                facts::analyse(&self.filter.program, &fact, &mut known);
                if self.filter.conjuncts.iter().any(|conjunct| !known[conjunct.root].may_be_true()) {
                    pruned += 1;
                    stats.blocks_pruned += blocks;
                    continue;
                }
                rows_left += u64::from(meta.rows);
                for (lookup, filter) in self.lookups.in_row_group(meta) {
                    let asked = memberships.entry(lookup.column).or_default();
                    asked.0 += 1;
                    asked.1 += u64::from(filter.length);
                    asked.2 += lookup.pass_share(&filter);
                }
                let length = |column: usize| meta.columns.get(column).map_or(0, |chunk| u64::from(chunk.length));
                let mut filtering = vec![false; self.schema.len() + 1];
                for (conjunct, always) in self.filter.conjuncts.iter().zip(&mut always) {
                    if known[conjunct.root].is_always_true() {
                        *always += 1;
                    } else {
                        conjunct.columns.iter().for_each(|column| filtering[*column] = true);
                    }
                }
                for (column, filtering) in filtering.iter().enumerate() {
                    if *filtering {
                        filter_bytes[column] += length(column);
                    } else if self.body_columns().contains(&column) {
                        body_bytes[column] += length(column);
                    }
                }
            }
        }
        let mut text = String::new();
        stats.row_groups_total = groups;
        stats.row_groups_pruned = pruned;
        stats.bytes_decoded = filter_bytes.iter().chain(&body_bytes).sum();
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "segments {segment_count}, row groups {groups}, pruned by zone maps {pruned}, rows {rows}, left {rows_left}"
        );
        let names = hidb::plan::explain::column_names(&self.schema);
        let mut order: Vec<usize> = (0..self.filter.conjuncts.len()).collect();
        order.sort_by(|a, b| self.filter.conjuncts[*a].cost.total_cmp(&self.filter.conjuncts[*b].cost));
        for index in order {
            let conjunct = &self.filter.conjuncts[index];
            let on_encoded = conjunct.encoded.is_some() || conjunct.tree.is_some();
            let place = match (on_encoded, conjunct.dictionary_column) {
                (true, _) => "on encoded data",
                (false, Some(_)) => "once per dictionary entry, or on surviving rows without a dictionary",
                (false, None) => "on surviving rows",
            };
            let predicate = hidb::plan::explain::expression(&conjunct.expr, &names);
            let skipped = match always[index] {
                0 => String::new(),
                count => format!("; not evaluated in {count} row groups, where zone maps prove it"),
            };
            let _ = writeln!(text, "filter {predicate}: {place}{skipped}");
        }
        for (column, (asked, bytes, passing)) in memberships {
            let _ = writeln!(
                text,
                "membership filters of {}: asked in {asked} row groups ({bytes} bytes); of those without the value about \
                 {:.0}% are read",
                self.column_name(column),
                100.0 * passing / asked.max(1) as f64
            );
        }
        for (label, bytes) in [("read to filter", &filter_bytes), ("read where rows survive", &body_bytes)] {
            for (column, bytes) in bytes.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
                let _ = writeln!(text, "{label}: {} {bytes} bytes", self.column_name(column));
            }
        }
        if let Some(aggregate) = &self.aggregate {
            let _ = writeln!(
                text,
                "group by {} keys, {} aggregates in {} states",
                aggregate.keys.len(),
                aggregate.aggregates.len(),
                aggregate.states.len()
            );
        }
        if let Some(sort) = &self.sort {
            let limit = sort.limit.map_or("all rows".to_string(), |limit| format!("best {} rows", limit + sort.offset));
            let _ = writeln!(text, "sort by {} keys, {limit}", sort.keys.len());
        }
        (text, stats)
    }
}
