//! Arrays as NumPy and TEXMEX write them, cut ones, and bytes that are none.

use std::io::Cursor;

use proptest::prelude::*;

use super::*;

fn npy(descr: &str, is_fortran: bool, shape: &str, elements: &[u8]) -> Vec<u8> {
    let order = if is_fortran { "True" } else { "False" };
    let mut dictionary = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    // NumPy fills up, so that the elements begin at a multiple of 64 bytes.
    while (10 + dictionary.len() + 1) % 64 != 0 {
        dictionary.push(' ');
    }
    dictionary.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dictionary.len() as u16).to_le_bytes());
    bytes.extend(dictionary.as_bytes());
    bytes.extend(elements);
    bytes
}

fn fvecs(rows: &[&[f32]]) -> Vec<u8> {
    let row = |row: &&[f32]| {
        let elements = row.iter().flat_map(|value| value.to_le_bytes());
        (row.len() as i32).to_le_bytes().into_iter().chain(elements).collect::<Vec<u8>>()
    };
    rows.iter().flat_map(row).collect()
}

fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Element, dimension, all numbers, how many rows; read so many rows at a time.
fn read(name: &str, bytes: &[u8], at_a_time: usize) -> Result<(ArrayElement, usize, Vec<f32>, usize)> {
    let mut reader = ArrayReader::new(name, Cursor::new(bytes), Some(bytes.len() as u64))?;
    let (mut elements, mut rows) = (Vec::new(), 0);
    loop {
        match reader.read_rows(at_a_time, &mut elements)? {
            0 => break,
            taken => rows += taken,
        }
    }
    assert_eq!(reader.rows(), Some(rows as u64));
    assert_eq!(elements.len(), rows * reader.row_bytes());
    Ok((reader.element(), reader.dimension(), reader.element().numbers(&elements), rows))
}

#[test]
fn every_format_gives_the_same_rows_however_many_are_read_at_a_time() {
    let numbers = [1.0, -2.5, 3.0, 0.0, 65.0, 7.0];
    let halves: Vec<u8> = numbers.iter().flat_map(|value| F16::from_f32(*value).to_le_bytes()).collect();
    let big: Vec<u8> = numbers.iter().flat_map(|value| value.to_be_bytes()).collect();
    let files = [
        ("a.npy", npy("<f4", false, "(3, 2)", &le(&numbers)), ArrayElement::F32),
        ("a.npy", npy(">f4", false, "(3, 2)", &big), ArrayElement::F32),
        ("a.npy", npy("<f2", false, "(3, 2)", &halves), ArrayElement::F16),
        ("a", fvecs(&[&numbers[..2], &numbers[2..4], &numbers[4..]]), ArrayElement::F32),
        ("a.json", b" [[1, -2.5], [3e0, 0],\n[65, 7]] ".to_vec(), ArrayElement::F32),
    ];
    for (name, bytes, element) in &files {
        for at_a_time in [1, 2, 3, usize::MAX] {
            let got = read(name, bytes, at_a_time).unwrap();
            assert_eq!(got, (*element, 2, numbers.to_vec(), 3), "{name}, {at_a_time} at a time");
        }
    }
}

#[test]
fn bytes_are_numbers_with_or_without_a_sign() {
    let elements = [0, 1, 127, 128, 255, 2];
    let signed = read("a", &npy("|i1", false, "(2, 3)", &elements), 9).unwrap();
    assert_eq!(signed, (ArrayElement::I8, 3, vec![0.0, 1.0, 127.0, -128.0, -1.0, 2.0], 2));
    let unsigned = read("a", &npy("|u1", false, "(2, 3)", &elements), 9).unwrap();
    assert_eq!(unsigned, (ArrayElement::U8, 3, vec![0.0, 1.0, 127.0, 128.0, 255.0, 2.0], 2));
    let bvecs = [&[3, 0, 0, 0][..], &elements[..3], &[3, 0, 0, 0], &elements[3..]].concat();
    assert_eq!(read("sift.bvecs", &bvecs, 9).unwrap(), unsigned);
}

#[test]
fn one_dimension_is_one_vector() {
    for (name, bytes) in [
        ("a.npy", npy("<f4", false, "(3,)", &le(&[1.0, 2.0, 3.0]))),
        ("a.npy", npy("<f4", true, "(3,)", &le(&[1.0, 2.0, 3.0]))),
        ("a.json", b"[1, 2.0, 3]".to_vec()),
    ] {
        let reader = ArrayReader::new(name, Cursor::new(&bytes), None).unwrap();
        assert!(reader.is_single() && reader.rows() == Some(1) && reader.dimension() == 3, "{reader:?}");
        assert_eq!(read(name, &bytes, 5).unwrap(), (ArrayElement::F32, 3, vec![1.0, 2.0, 3.0], 1));
    }
    let list = ArrayReader::new("a", Cursor::new(b"[[1, 2]]"), None).unwrap();
    assert!(!list.is_single() && list.rows() == Some(1));
}

#[test]
fn an_array_without_rows_has_none() {
    assert_eq!(read("a", &npy("<f4", false, "(0, 4)", &[]), 5).unwrap(), (ArrayElement::F32, 4, vec![], 0));
}

#[test]
fn readers_go_to_a_row() {
    let numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    for bytes in [
        npy("<f4", false, "(3, 2)", &le(&numbers)),
        fvecs(&[&numbers[..2], &numbers[2..4], &numbers[4..]]),
        b"[[1,2],[3,4],[5,6]]".to_vec(),
    ] {
        let mut reader = ArrayReader::new("a", Cursor::new(&bytes), Some(bytes.len() as u64)).unwrap();
        for row in [2, 0, 1, 3] {
            reader.go_to(row).unwrap();
            let mut elements = Vec::new();
            reader.read_rows(1, &mut elements).unwrap();
            let at = 2 * row as usize;
            assert_eq!(ArrayElement::F32.numbers(&elements), numbers[at..(at + 2).min(6)]);
        }
        assert_eq!(reader.go_to(4).unwrap_err().code, ErrorCode::InvalidParameter);
    }
}

#[test]
fn what_is_no_array_of_vectors_is_refused_with_what_to_do() {
    let numbers = le(&[1.0, 2.0, 3.0, 4.0]);
    let version_9 = [b"\x93NUMPY\x09\x00".to_vec(), vec![0; 20]].concat();
    for (bytes, says) in [
        (Vec::new(), "nothing in it"),
        (b"hello world".to_vec(), "not .npy"),
        (version_9, "version 9.0"),
        (npy("<f8", false, "(2, 2)", &numbers), "\"<f8\""),
        (npy("<i8", false, "(2, 2)", &numbers), "\"<i8\""),
        (npy("|O", false, "(2, 2)", &numbers), "not f4"),
        (npy("", false, "(2, 2)", &numbers), "not f4"),
        (npy("<f4", true, "(2, 2)", &numbers), "Fortran"),
        (npy("<f4", false, "(1, 2, 2)", &numbers), "3 dimensions"),
        (npy("<f4", false, "()", &numbers), "0 dimensions"),
        (npy("<f4", false, "(4, 0)", &[]), "vectors of 0 elements"),
        (npy("<f4", false, "(1, 70000)", &[0; 280_000]), "vectors of 70000 elements"),
        (npy("<f4", false, "(2, 3)", &numbers), "not the array of 2 times 3"),
        (npy("<f4", false, "(18446744073709551615, 3)", &numbers), "not the array of"),
        (npy("<f4", false, "(1, 2)", &numbers), "not the array of 1 times 2"),
        (b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "ends within its header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(), "a header of 4294967295 bytes"),
        ([fvecs(&[&[1.0, 2.0]]), vec![1]].concat(), "no whole number of vectors"),
        ([fvecs(&[&[1.0, 2.0]]), vec![9; 12]].concat(), "row 1 says that it has 151587081 elements"),
        (b"[1, [2]]".to_vec(), "an array among numbers"),
        (b"[[1], 2]".to_vec(), "a number among arrays"),
        (b"[[1], [2, 3]]".to_vec(), "vector 1 has 2 elements where the first has 1"),
        (b"[[[1]]]".to_vec(), "an array within the vectors"),
        (b"[1e39]".to_vec(), "out of the range of f32"),
        (b"[1, null]".to_vec(), "expected a number"),
        (b"[1".to_vec(), "not a JSON array"),
        (b"[1] [2]".to_vec(), "not a JSON array"),
        (b"[]".to_vec(), "vectors of 0 elements"),
        (b"[[], []]".to_vec(), "vectors of 0 elements"),
    ] {
        let error = read("some.file", &bytes, 7).unwrap_err();
        assert_eq!(error.code, ErrorCode::MalformedInput, "{error}");
        assert!(error.message.starts_with("some.file: ") && error.message.contains(says), "{says}: {error}");
    }
}

#[test]
fn streams_that_end_early_or_go_on_are_found_while_they_are_read() {
    let read = |bytes: &[u8]| -> Result<()> {
        let mut reader = ArrayReader::new("-", Cursor::new(bytes), None)?;
        while reader.read_rows(1, &mut Vec::new())? > 0 {}
        Ok(())
    };
    let whole = npy("<f4", false, "(2, 2)", &le(&[1.0, 2.0, 3.0, 4.0]));
    let vecs = fvecs(&[&[1.0, 2.0], &[3.0, 4.0]]);
    assert_eq!((read(&whole), read(&vecs)), (Ok(()), Ok(())));
    for (bytes, says) in [
        (&whole[..whole.len() - 1], "ends within row 1 of 2"),
        (&whole[..whole.len() - 9], "ends within row 0 of 2"),
        (&[&whole[..], b"x"].concat()[..], "goes on after the array"),
        (&vecs[..vecs.len() - 1], "ends within row 1"),
        (&vecs[..vecs.len() - 10], "ends within row 1"),
    ] {
        let error = read(bytes).unwrap_err();
        assert!(error.message.contains(says), "{says}: {error}");
    }
}

#[test]
fn a_header_that_promises_too_much_allocates_nothing() {
    let bytes = npy("<f4", false, "(9000000000000000, 60000)", &le(&[1.0; 100]));
    let mut reader = ArrayReader::new("-", Cursor::new(&bytes), None).unwrap();
    let mut elements = Vec::new();
    assert!(reader.read_rows(usize::MAX, &mut elements).is_err());
    assert!(elements.capacity() < 64 << 10);
}

proptest! {
    #[test]
    fn arrays_come_back(rows in 1usize..20, dimension in 1usize..20, seed in any::<u32>(), at_a_time in 1usize..30) {
        let numbers: Vec<f32> = (0..rows * dimension).map(|n| (n as u32).wrapping_mul(seed) as f32).collect();
        let shape = format!("({rows}, {dimension})");
        let lists: Vec<&[f32]> = numbers.chunks(dimension).collect();
        let json = format!("{lists:?}").into_bytes();
        for bytes in [npy("<f4", false, &shape, &le(&numbers)), fvecs(&lists), json] {
            prop_assert_eq!(read("a", &bytes, at_a_time).unwrap(), (ArrayElement::F32, dimension, numbers.clone(), rows));
        }
    }

    #[test]
    fn arbitrary_bytes_are_an_array_or_an_error(
        start in 0usize..5,
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        knows_length in any::<bool>(),
    ) {
        let start: &[u8] = [&b""[..], b"\x93NUMPY\x01\x00\x40\x00{'descr':'<f4','shape':(", b"[", b"\x02\0\0\0", b"[[1,"][start];
        let bytes = [start, &bytes].concat();
        let length = knows_length.then_some(bytes.len() as u64);
        if let Ok(mut reader) = ArrayReader::new("a.bvecs", Cursor::new(&bytes), length) {
            let mut elements = Vec::new();
            while let Ok(taken) = reader.read_rows(3, &mut elements) {
                if taken == 0 {
                    prop_assert_eq!(elements.len() % reader.row_bytes(), 0);
                    break;
                }
            }
            prop_assert!(elements.len() <= 4 * bytes.len());
        }
    }

    #[test]
    fn damaged_arrays_are_an_array_or_an_error(at in any::<usize>(), value in any::<u8>(), cut in any::<usize>()) {
        let mut bytes = npy("<f4", false, "(2, 3)", &le(&[1.0; 6]));
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(bytes.len() - cut % 40);
        let _ = read("a", &bytes, 2);
    }
}
