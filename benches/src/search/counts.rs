//! What searches say that they did, added up.

use heliostat_client::SearchStatistics;
use heliostat_fio::engine::Figure;

/// What is counted of a search, by the name that it has in reports.
type Counted = (&'static str, fn(&SearchStatistics) -> u64);

const COUNTED: [Counted; 10] = [
    ("lists_probed", |did| did.lists_probed),
    ("codes_scanned", |did| did.codes_scanned),
    ("codes_refined", |did| did.codes_refined),
    ("nodes_visited", |did| did.nodes_visited),
    ("candidates_reranked", |did| did.candidates_reranked),
    ("rows_compared", |did| did.rows_compared),
    ("unindexed_rows", |did| did.unindexed_rows),
    ("rows_filtered", |did| did.rows_filtered),
    ("device_reads", |did| did.device_reads),
    ("device_bytes", |did| did.device_bytes),
];

/// What is said even when it is 0.
const ALWAYS: [&str; 1] = ["device_reads"];

/// Different plans that are kept: with a filter that changes each may be another.
const PLANS_MAX: usize = 3;

/// The sums of several searches.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    queries: u64,
    sums: [u64; COUNTED.len()],
    plans: Vec<String>,
    has_more_plans: bool,
}

impl Counts {
    /// One search for the neighbours of so many vectors.
    pub fn add(&mut self, queries: u64, did: &SearchStatistics) {
        self.queries += queries;
        self.sums.iter_mut().zip(COUNTED).for_each(|(sum, (_, of))| *sum += of(did));
        self.add_plan(&did.plan);
    }

    fn add_plan(&mut self, plan: &str) {
        if plan.is_empty() || self.plans.iter().any(|known| known == plan) {
            return;
        }
        match self.plans.len() < PLANS_MAX {
            true => self.plans.push(plan.to_string()),
            false => self.has_more_plans = true,
        }
    }

    /// Those of another connection.
    pub fn merge(&mut self, other: &Counts) {
        self.queries += other.queries;
        self.sums.iter_mut().zip(other.sums).for_each(|(sum, more)| *sum += more);
        other.plans.iter().for_each(|plan| self.add_plan(plan));
        self.has_more_plans |= other.has_more_plans;
    }

    /// Queries per second, and means per query of what occurred.
    pub fn figures(&self) -> Vec<Figure> {
        let figure = |name: &str, total: u64, count| Figure { name: name.into(), total: total as f64, count };
        let of_query = COUNTED.iter().zip(self.sums).filter(|((name, _), sum)| *sum > 0 || ALWAYS.contains(name));
        let of_query = of_query.map(|((name, _), sum)| figure(name, sum, Some(self.queries)));
        std::iter::once(figure("queries", self.queries, None)).chain(of_query).collect()
    }

    /// The mean per query of one of the figures; 0 for what did not occur.
    pub fn mean(&self, name: &str) -> f64 {
        let found = COUNTED.iter().zip(self.sums).find(|((known, _), _)| *known == name);
        found.map_or(0.0, |(_, sum)| sum as f64 / self.queries.max(1) as f64)
    }

    /// How the cell answered, in its words.
    pub fn plan(&self) -> String {
        let more = if self.has_more_plans { "; and others" } else { "" };
        format!("{}{more}", self.plans.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn did(plan: &str, lists_probed: u64) -> SearchStatistics {
        SearchStatistics { plan: plan.into(), lists_probed, ..Default::default() }
    }

    #[test]
    fn searches_are_added_up_per_query_and_over_connections() {
        let (mut one, mut other) = (Counts::default(), Counts::default());
        one.add(4, &did("ivf", 32));
        other.add(4, &did("exact", 0));
        other.add(2, &did("ivf", 8));
        one.merge(&other);
        assert_eq!((one.mean("lists_probed"), one.mean("codes_scanned"), one.mean("nothing")), (4.0, 0.0, 0.0));
        assert_eq!(one.plan(), "ivf; exact");
        let figures = one.figures();
        let shown: Vec<_> = figures.iter().map(|figure| (figure.name.as_str(), figure.total, figure.count)).collect();
        assert_eq!(shown, [("queries", 10.0, None), ("lists_probed", 40.0, Some(10)), ("device_reads", 0.0, Some(10))]);
    }

    #[test]
    fn of_many_plans_a_few_are_kept() {
        let mut counts = Counts::default();
        (0..5).for_each(|rows| counts.add(1, &did(&format!("exact: {rows} rows"), 0)));
        assert_eq!(counts.plan(), "exact: 0 rows; exact: 1 rows; exact: 2 rows; and others");
    }
}
