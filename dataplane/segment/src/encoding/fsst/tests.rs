use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::parse::{NO_CODE, PIECE_BYTES, Parser, Symbol};
use super::*;
use crate::simd::at_every_level;

/// The fewest bytes of code, tried from every place on.
fn fewest(symbols: &[Symbol], text: &[u8]) -> usize {
    let mut costs = vec![0; text.len() + 1];
    for at in (0..text.len()).rev() {
        let with = symbols.iter().filter(|symbol| text[at..].starts_with(symbol.bytes()));
        let with = with.map(|symbol| 1 + costs[at + symbol.bytes().len()]);
        costs[at] = with.min().unwrap_or(usize::MAX).min(2 + costs[at + 1]);
    }
    costs[0]
}

fn symbols(alphabet: &'static str) -> impl Strategy<Value = Vec<Symbol>> {
    prop::collection::btree_set(alphabet, 0..40)
        .prop_map(|texts| texts.iter().map(|text| Symbol::new(text.as_bytes())).collect())
}

proptest! {
    #[test]
    fn splits_are_the_shortest_at_every_level(
        symbols in symbols("[a-c]{1,8}|é|[a-z]"), texts in ["[a-c]{0,80}|[a-zé]{0,40}", "[a-c]{0,80}"],
    ) {
        let texts = [texts[0].as_bytes(), texts[1].as_bytes()];
        let mut splits = Vec::new();
        at_every_level(|_| {
            let mut parser = Parser::new(&symbols);
            assert_eq!(parser.parse(texts), texts.map(|text| fewest(&symbols, text)));
            splits.push([0, 1].map(|which| {
                let mut pieces: Vec<_> = parser.backwards(which, texts[which].len()).collect();
                pieces.reverse();
                pieces
            }));
        });
        assert!(splits.iter().all(|split| split == &splits[0]));
        for (split, text) in splits[0].iter().zip(texts) {
            let mut at = 0;
            for (code, start, length) in split {
                assert_eq!(*start, at);
                at += length;
                match *code {
                    NO_CODE => assert_eq!(*length, 1),
                    code => assert_eq!(symbols[usize::from(code)].bytes(), &text[*start..at]),
                }
            }
            assert_eq!(at, text.len());
        }
    }

    #[test]
    fn what_a_symbol_saves_is_what_its_text_costs_without_it(symbols in symbols("[a-c]{1,8}")) {
        let parser = Parser::new(&symbols);
        for (code, symbol) in symbols.iter().enumerate() {
            let mut others = symbols.clone();
            others.remove(code);
            assert_eq!(parser.cost_without(symbol), fewest(&others, symbol.bytes()));
        }
    }

    #[test]
    fn compressed_values_decompress(
        words in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..12), 1..60),
        values in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..60), 100..800),
    ) {
        let values: Vec<Vec<u8>> =
            values.iter().map(|value| value.iter().flat_map(|word| word.get(&words).iter().copied()).collect()).collect();
        check(&values);
    }
}

/// Compresses and decompresses; bytes of the codes, or of the values if those don't pay.
fn check(values: &[Vec<u8>]) -> usize {
    let values: Vec<&[u8]> = values.iter().map(|value| value.as_slice()).collect();
    let Some(compressed) = compress(&values) else { return values.iter().map(|value| value.len()).sum() };
    let table = SymbolTable::new(&compressed.table).unwrap();
    let mut start = 0;
    let mut out = vec![0; 8 + values.iter().map(|value| value.len()).max().unwrap_or(0)];
    assert_eq!(compressed.ends.len(), values.len());
    for (value, end) in values.iter().zip(&compressed.ends) {
        let length = table.decode(&compressed.data[start..*end as usize], &mut out).unwrap();
        assert_eq!(&&out[..length], value);
        start = *end as usize;
    }
    assert_eq!(start, compressed.data.len());
    start
}

/// By the crate `fsst-rs`, an implementation of the paper.
fn published(values: &[Vec<u8>]) -> usize {
    let values: Vec<&[u8]> = values.iter().map(|value| value.as_slice()).filter(|value| !value.is_empty()).collect();
    let compressor = ::fsst::Compressor::train(&values);
    values.iter().map(|value| compressor.compress(value).len()).sum()
}

#[test]
fn all_bytes_and_values_of_many_pieces() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let all: Vec<Symbol> = (0..=255u8).take(SYMBOLS_MAX).map(|byte| Symbol::new(&[byte])).collect();
    assert_eq!(Parser::new(&all).parse([&[7, 254, 255], &[]]), [4, 0]);
    let every: Vec<Symbol> = (0..=255u8).map(|byte| Symbol::new(&[byte])).collect();
    assert_eq!(Parser::new(&every).parse([&[7, 254, 255], &[255]]), [3, 1]);
    // Costs of a whole piece of escapes fit into 16 bits.
    assert_eq!(Parser::new(&[]).parse([&[], &[0; PIECE_BYTES]]), [0, 2 * PIECE_BYTES]);
    // Nothing to gain, but nothing lost.
    let random: Vec<Vec<u8>> = (0..2000).map(|_| (0..20).map(|_| rng.random()).collect()).collect();
    assert_eq!(check(&random), 40_000);
    // What begins like something to gain is given up in time.
    let mut tail = vec![0u8; 60_000];
    tail.extend((0..200_000).map(|_| rng.random::<u8>()));
    assert!(check(&[tail]) <= 260_000);
}

#[test]
fn values_of_all_lengths_and_bytes() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    // Words of all bytes there are, zeros among them.
    let words: Vec<Vec<u8>> = (0..100).map(|_| (0..rng.random_range(1..12)).map(|_| rng.random()).collect()).collect();
    let mut value = |bytes: usize| -> Vec<u8> {
        let mut value = Vec::new();
        while value.len() < bytes {
            value.extend_from_slice(&words[rng.random_range(0..words.len())]);
        }
        value.truncate(bytes);
        value
    };
    let around = [0, 1, 7, 8, 9, 255, 256, 257, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5];
    // Each beside each, in both places, and an odd one at the end.
    let mut values: Vec<Vec<u8>> =
        around.iter().flat_map(|a| around.map(|b| [*a, b])).flatten().map(&mut value).collect();
    values.push(value(100));
    let raw: usize = values.iter().map(|value| value.len()).sum();
    let mut first = None;
    at_every_level(|_| {
        let compressed =
            compress(&values.iter().map(|value| value.as_slice()).collect::<Vec<_>>()).expect("words come again");
        let first = first.get_or_insert((compressed.data.clone(), compressed.table.clone()));
        assert!(*first == (compressed.data, compressed.table), "the same at every level, each time");
    });
    assert!(check(&values) < raw / 2);
    // Nearly all NULL.
    let mut sparse = vec![Vec::new(); 50_000];
    (0..500).for_each(|number| sparse[number * 97] = value(60));
    assert!(check(&sparse) < 20_000);
}

#[test]
fn no_kind_of_text_takes_more_than_by_the_published_construction() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let words =
        ["furiously", "special", "requests", "sleep", "the", "carefully", "ironic", "deposits", "among", "quick"];
    let mut text = |kind: usize, number: usize| -> String {
        let mut word = || words[rng.random_range(0..words.len())];
        match kind {
            0 => (0..5).map(|_| word()).collect::<Vec<_>>().join(" "),
            1 => format!("https://example.org/{}/{}/{number}?q={}", word(), word(), word()),
            2 => format!("{{\"id\":{number},\"name\":\"{}\",\"tags\":[\"{}\",\"{}\"]}}", word(), word(), word()),
            3 => format!("{:032x}", rng.random::<u128>()),
            4 => format!("Customer#{number:09}"),
            5 => format!(
                "2024-{:02}-{:02} 12:{:02}",
                rng.random_range(1..13),
                rng.random_range(1..29),
                rng.random_range(0..60)
            ),
            6 => (0..20).map(|_| rng.random_range('a'..='z')).collect(),
            7 => format!(
                "{}-{}-{}",
                rng.random_range(10..35),
                rng.random_range(100..1000),
                rng.random_range(1000..10000)
            ),
            8 => (0..10).map(|_| ['é', 'ü', '中', '文', 'a', ' '][rng.random_range(0..6)]).collect(),
            _ => word().chars().take(number % 4).collect(),
        }
    };
    let mut long = |values: usize, bytes: usize| -> Vec<Vec<u8>> {
        let mut value = |number| {
            let mut value = String::new();
            while value.len() < bytes {
                value += &text(number % 3, number);
                value += ", ";
            }
            value.into_bytes()
        };
        (0..values).map(&mut value).collect()
    };
    let few = [
        long(1, 100_000),
        long(10, 50_000),
        [long(3, 20_000), vec![b"short".to_vec(); 300], vec![Vec::new(); 300]].concat(),
    ];
    let many = (0..10).map(|kind| (0..20_000).map(|number| text(kind, number).into_bytes()).collect());
    for (kind, values) in few.into_iter().chain(many).enumerate() {
        let values: Vec<Vec<u8>> = values;
        let raw: usize = values.iter().map(|value| value.len()).sum();
        let (ours, theirs) = (check(&values), published(&values));
        println!("kind {kind}: {raw} bytes, published {theirs}, here {ours}: {:.3}", ours as f64 / theirs as f64);
        assert!(ours <= theirs.min(raw), "kind {kind}: {raw} bytes, published {theirs}, here {ours}");
    }
}
