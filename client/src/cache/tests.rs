//! The cache against a made-up cell whose notices and answers come late and in any order. No sockets, no clock.

use std::collections::VecDeque;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use hidb::DataType;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::notice::NoticeGap;

fn key(table: &str, number: u64) -> AnswerKey {
    AnswerKey {
        table: table.into(),
        schema_hash: 1,
        plan: Bytes::from_static(b"plan"),
        parameters: number.to_le_bytes().to_vec(),
        memory_bytes_max: 0,
    }
}

fn message(value: i64, rows: usize) -> (Bytes, SchemaRef) {
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(value, rows)));
    let batch = RecordBatch::try_from_iter([("n", values)]).unwrap();
    (image::image_of_batch(&batch).unwrap().bytes.into_bytes(), batch.schema())
}

fn keeper(cache: &Arc<Cache>, session: SessionEpoch, key: AnswerKey) -> Keeper {
    let stamp = cache.stamp(session).unwrap();
    Keeper::new(Keeping { cache: cache.clone(), key: Arc::new(key), stamp })
}

/// Asks, is answered, and keeps, all at once.
fn keep(cache: &Arc<Cache>, session: SessionEpoch, key: AnswerKey, value: i64, rows: usize) -> bool {
    let mut keeper = keeper(cache, session, key);
    let (message, schema) = message(value, rows);
    let fits = keeper.put_aside(&message, &schema).unwrap().is_some();
    if fits {
        keeper.finish(schema);
    }
    fits
}

fn value(answer: &Answer) -> i64 {
    answer.batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

fn changed(table: &str, generation: u64) -> Notice {
    Notice::DataChanged { table: table.into(), schema_hash: 1, generation }
}

impl Cache {
    /// Whether its maps agree with each other.
    fn check(&self) {
        let mut state = self.lock();
        let listed: Vec<Arc<AnswerKey>> = state.by_table.values().flatten().cloned().collect();
        assert!(state.by_table.values().all(|keys| !keys.is_empty()));
        assert_eq!(listed.len(), state.answers.len());
        assert!(listed.iter().all(|key| state.answers.get(&**key).is_some()));
        assert!(state.answers.cost() <= self.bytes_max);
    }
}

#[test]
fn an_answer_is_found_by_the_same_question_only_and_until_its_table_changes() {
    let cache = Arc::new(Cache::new(1 << 20));
    let session = cache.begin_session();
    assert!(keep(&cache, session, key("a", 1), 7, 10));
    assert!(keep(&cache, session, key("b", 1), 8, 10));
    assert_eq!(cache.answer(&key("a", 1)).map(|answer| value(&answer)), Some(7));
    assert!(cache.answer(&key("a", 2)).is_none());
    for other in [
        AnswerKey { schema_hash: 2, ..key("a", 1) },
        AnswerKey { plan: Bytes::from_static(b"another"), ..key("a", 1) },
        AnswerKey { memory_bytes_max: 9, ..key("a", 1) },
    ] {
        assert!(cache.answer(&other).is_none(), "{other:?}");
    }
    cache.observe(&changed("a", 2));
    assert!(cache.answer(&key("a", 1)).is_none());
    assert_eq!(cache.answer(&key("b", 1)).map(|answer| value(&answer)), Some(8));
    let counts = cache.statistics();
    assert_eq!((counts.hits, counts.misses, counts.kept, counts.invalidated, counts.answers), (2, 5, 2, 1, 1));
}

#[test]
fn every_way_of_losing_touch_drops_everything_and_what_is_under_way() {
    let table = || "a".to_string();
    type Loses = fn(&Cache);
    let losses: [(&str, Loses); 6] = [
        ("gap", |cache| cache.observe(&Notice::EverythingChanged(NoticeGap::Missed(1)))),
        ("lost", |cache| cache.observe(&Notice::EverythingChanged(NoticeGap::ConnectionLost))),
        ("session", |cache| {
            cache.begin_session();
        }),
        ("drop", |cache| cache.observe(&Notice::TableDropped { table: "a".into() })),
        ("own", |cache| cache.changed_here("a")),
        ("other columns", |cache| {
            cache.observe(&Notice::SchemaChanged { table: "a".into(), schema_hash: 2, generation: 5 });
        }),
    ];
    let schema = Arc::new(Schema::new(vec![hidb::Field::new("n", DataType::Int64, false)]).unwrap());
    for (what, lose) in losses {
        let cache = Arc::new(Cache::new(1 << 20));
        let session = cache.begin_session();
        let stamp = cache.stamp(session);
        cache.keep_schema("a", schema.clone(), stamp);
        assert!(keep(&cache, session, key("a", 1), 7, 10) && cache.schema("a").is_some());
        let mut under_way = keeper(&cache, session, key("a", 2));
        lose(&cache);
        assert!(cache.answer(&key("a", 1)).is_none(), "{what}");
        assert!(cache.schema("a").is_none(), "{what}");
        let (message, schema_of_answer) = message(7, 10);
        under_way.put_aside(&message, &schema_of_answer).unwrap();
        under_way.finish(schema_of_answer);
        cache.keep_schema(&table(), schema.clone(), stamp);
        assert!(cache.answer(&key("a", 2)).is_none() && cache.schema("a").is_none(), "{what}");
    }
}

#[test]
fn changed_rows_leave_columns_known_and_another_hash_does_not() {
    let schema = Arc::new(Schema::new(vec![hidb::Field::new("n", DataType::Int64, false)]).unwrap());
    let cache = Cache::new(0);
    let session = cache.begin_session();
    cache.keep_schema("a", schema.clone(), cache.stamp(session));
    cache.observe(&Notice::DataChanged { table: "a".into(), schema_hash: schema.hash(), generation: 2 });
    assert!(cache.schema("a").is_some());
    cache.observe(&Notice::DataChanged { table: "a".into(), schema_hash: schema.hash() ^ 1, generation: 3 });
    assert!(cache.schema("a").is_none());
}

#[test]
fn what_is_kept_owns_its_memory_and_is_counted() {
    let cache = Arc::new(Cache::new(64 << 10));
    let session = cache.begin_session();
    // A short answer at the end of a long buffer.
    let (short, schema) = message(7, 10);
    let mut long = vec![0; 1 << 20];
    let at = long.len() - short.len();
    long[at..].copy_from_slice(&short);
    let long = Bytes::from(long);
    let mut keeper = keeper(&cache, session, key("a", 1));
    let batch = keeper.put_aside(&long.slice(at..), &schema).unwrap().unwrap();
    assert!(long.is_unique(), "the batch borrows the buffer it was received in");
    keeper.finish(schema);
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().value(9), 7);
    let bytes = cache.statistics().bytes;
    assert!((short.len()..short.len() + 2048).contains(&bytes), "{bytes} bytes for {}", short.len());
    // More than an eighth is not kept, whatever its parts are.
    assert!(!keep(&cache, session, key("a", 2), 7, 1100));
    let mut keeper = self::keeper(&cache, session, key("a", 3));
    let (part, schema) = message(7, 300);
    let taken: Vec<bool> = (0..4).map(|_| keeper.put_aside(&part, &schema).unwrap().is_some()).collect();
    assert_eq!((taken[0], taken[3]), (true, false), "{taken:?}");
    for number in 0..1000 {
        assert!(keep(&cache, session, key("a", number), 7, 1 + number as usize % 700));
        cache.check();
    }
    let counts = cache.statistics();
    assert!(counts.bytes > 48 << 10 && counts.evicted > 900, "{counts:?}");
    cache.observe(&changed("a", 2));
    assert_eq!((cache.statistics().bytes, cache.statistics().answers), (0, 0));
}

/// A question under way: what it was about, and the generation that the cell answers it from.
struct UnderWay {
    table: usize,
    keeper: Keeper,
    generation: u64,
    has_begun: bool,
}

/// Notices are delivered in order but late, or get lost and leave a gap; answers begin and end whenever they like.
/// Never is an answer given out that is older than the last notice, than any answer that had begun before, or than an own
/// change.
#[test]
fn nothing_old_is_ever_given_out_however_notices_and_answers_overtake_each_other() {
    const TABLES: [&str; 3] = ["a", "b", "c"];
    let (mut hits, mut invalidated) = (0, 0);
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let cache = Arc::new(Cache::new(16 << 10));
        let mut session = cache.begin_session();
        let mut generations = [1u64; 3];
        // What a hit must not be older than.
        let mut floor = [0u64; 3];
        let mut notices: VecDeque<(usize, u64)> = VecDeque::new();
        let mut under_way: Vec<UnderWay> = Vec::new();
        for _ in 0..400 {
            let table = random.random_range(0..3);
            match random.random_range(0..100) {
                // Asks; most of the time the cell has the question at once.
                0..25 => {
                    let key = key(TABLES[table], random.random_range(0..4));
                    match cache.answer(&key) {
                        Some(answer) => {
                            let found = value(&answer) as u64;
                            assert!(found >= floor[table], "seed {seed}: {found} after {}", floor[table]);
                        }
                        None => under_way.push(UnderWay {
                            table,
                            keeper: keeper(&cache, session, key),
                            generation: generations[table],
                            has_begun: false,
                        }),
                    }
                }
                // An answer begins or ends.
                25..75 if !under_way.is_empty() => {
                    let index = random.random_range(0..under_way.len());
                    let asked = &mut under_way[index];
                    if !asked.has_begun {
                        asked.has_begun = true;
                        cache.answered(TABLES[asked.table], asked.generation);
                        floor[asked.table] = floor[asked.table].max(asked.generation);
                        continue;
                    }
                    let UnderWay { mut keeper, generation, .. } = under_way.swap_remove(index);
                    let (message, schema) = message(generation as i64, random.random_range(1..200));
                    if keeper.put_aside(&message, &schema).unwrap().is_some() {
                        keeper.finish(schema);
                    }
                }
                // Somebody commits; the notice is on its way.
                75..85 => {
                    generations[table] += 1;
                    notices.push_back((table, generations[table]));
                }
                // This client does.
                85..88 => {
                    generations[table] += 1;
                    notices.push_back((table, generations[table]));
                    cache.changed_here(TABLES[table]);
                    floor[table] = generations[table];
                }
                // A notice comes.
                88..97 => {
                    if let Some((table, generation)) = notices.pop_front() {
                        cache.observe(&changed(TABLES[table], generation));
                        floor[table] = floor[table].max(generation);
                    }
                }
                // Notices get lost; the next one shows the gap.
                97..98 => {
                    notices.clear();
                    cache.observe(&Notice::EverythingChanged(NoticeGap::Missed(1)));
                    floor = generations;
                }
                // The connection is lost; answers of the old one may still be taken from its buffers.
                98 => {
                    cache.observe(&Notice::EverythingChanged(NoticeGap::ConnectionLost));
                    session = cache.begin_session();
                    notices.clear();
                    floor = generations;
                }
                _ => {}
            }
            cache.check();
        }
        let counts = cache.statistics();
        hits += counts.hits;
        invalidated += counts.invalidated;
    }
    assert!(hits > 500 && invalidated > 500, "it shows nothing: {hits} hits, {invalidated} invalidated");
}
