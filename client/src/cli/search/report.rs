//! What a search did, and what it cost.

use std::io::Write;
use std::time::Duration;

use heliostat_client::{ScanStatistics, SearchStatistics, SearchStream};

use crate::cli::answer::StatsFormat;
use crate::cli::scan::statistics_json;
use crate::cli::text::write_properties;
use crate::cli::{Failure, quantity};

/// Writes the statistics of a search that has ended.
pub fn print(stream: &SearchStream, format: StatsFormat, output: &mut dyn Write) -> Result<(), Failure> {
    let scan = stream.statistics().copied().unwrap_or_default();
    let search = stream.search_statistics().cloned().unwrap_or_default();
    let elapsed = stream.elapsed().unwrap_or_default();
    match format {
        StatsFormat::Json => writeln!(output, "{}", json(&scan, &search, elapsed))?,
        StatsFormat::Text => write_properties(output, &properties(&scan, &search, elapsed))?,
    }
    Ok(())
}

fn json(scan: &ScanStatistics, search: &SearchStatistics, elapsed: Duration) -> serde_json::Value {
    let mut all = statistics_json(scan, elapsed.as_micros() as u64);
    let own = serde_json::json!({
        "plan": search.plan,
        "rows_compared": search.rows_compared,
        "lists_probed": search.lists_probed,
        "codes_scanned": search.codes_scanned,
        "codes_refined": search.codes_refined,
        "candidates_reranked": search.candidates_reranked,
        "nodes_visited": search.nodes_visited,
        "unindexed_rows": search.unindexed_rows,
        "rows_filtered": search.rows_filtered,
        "device_reads": search.device_reads,
        "device_bytes": search.device_bytes,
    });
    if let (Some(all), serde_json::Value::Object(own)) = (all.as_object_mut(), own) {
        all.extend(own);
    }
    all
}

/// Names and values; counts of what this search had no use for are left out.
fn properties(scan: &ScanStatistics, search: &SearchStatistics, elapsed: Duration) -> Vec<(&'static str, String)> {
    let counts = [
        ("passed the filter", search.rows_filtered),
        ("lists probed", search.lists_probed),
        ("nodes visited", search.nodes_visited),
        ("codes scanned", search.codes_scanned),
        ("codes refined", search.codes_refined),
        ("candidates re-ranked", search.candidates_reranked),
        ("compared in full", search.rows_compared),
        ("of those not indexed", search.unindexed_rows),
    ];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0);
    let reads = quantity::counted(search.device_reads, "read");
    let mut properties = vec![("plan", search.plan.clone())];
    properties.extend(counts.map(|(name, count)| (name, quantity::count(count))));
    properties.extend([
        ("from the drive", format!("{}, {reads}", quantity::bytes(search.device_bytes))),
        ("rows", quantity::count(scan.rows)),
        ("returned", quantity::bytes(scan.bytes_returned)),
        ("elapsed", quantity::duration(elapsed)),
        ("in the cell", quantity::duration(Duration::from_micros(scan.cell_us))),
    ]);
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_reports_what_it_did_and_not_what_it_did_not() {
        let search = SearchStatistics {
            plan: "ivf: 8 of 256 lists".into(),
            lists_probed: 8,
            codes_scanned: 2_000,
            candidates_reranked: 40,
            device_reads: 48,
            device_bytes: 1_000_000,
            ..Default::default()
        };
        let scan = ScanStatistics { rows: 10, cell_us: 250, ..Default::default() };
        let mut text = Vec::new();
        write_properties(&mut text, &properties(&scan, &search, Duration::from_micros(400))).unwrap();
        let expected = "plan                  ivf: 8 of 256 lists\n\
                        lists probed          8\n\
                        codes scanned         2,000\n\
                        candidates re-ranked  40\n\
                        from the drive        1.0 MB, 48 reads\n\
                        rows                  10\n\
                        returned              0 B\n\
                        elapsed               400 us\n\
                        in the cell           250 us\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        let json = json(&scan, &search, Duration::from_micros(400));
        assert!(json["codes_scanned"] == 2_000 && json["nodes_visited"] == 0, "{json}");
        assert!(json["plan"] == "ivf: 8 of 256 lists" && json["elapsed_us"] == 400, "{json}");
    }
}
