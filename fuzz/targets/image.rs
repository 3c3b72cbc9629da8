//! Any bytes are an image of a schema or a typed error; a batch that was accepted is valid through and through.
#![no_main]

use arrow_array::Array;
use hidb::image::{image_of_batch, read_image, read_schema};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Two bytes say how long the schema message is; the image follows.
    let Some((length, messages)) = bytes.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(messages.len());
    let (schema, image) = messages.split_at(length);
    let Ok(schema) = read_schema(schema) else { return };
    let Ok(batch) = read_image(bytes::Bytes::copy_from_slice(image), &schema) else { return };
    for column in batch.columns() {
        column.to_data().validate_full().expect("an accepted column is valid");
    }
    let again = image_of_batch(&batch).expect("an accepted batch can be written").bytes.into_bytes();
    assert_eq!(read_image(again, &schema).expect("what was written reads").num_rows(), batch.num_rows());
});
