//! Arrow IPC files and streams: one part per file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, SchemaRef};
use hidb::{Error, ErrorCode, Result, Schema};

use super::columns::ColumnChoice;
use super::ordered::{InputBatch, Part, PartError};
use super::{Opened, open_file, read_failed};

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

fn reader(path: &Path, seekable: bool) -> Result<(SchemaRef, Batches)> {
    let malformed = |error: ArrowError| {
        Error::new(ErrorCode::MalformedInput, format!("{} is not a readable Arrow IPC file: {error}", path.display()))
    };
    let file = open_file(path)?;
    if seekable {
        let reader = FileReader::try_new(BufReader::with_capacity(1 << 20, file), None).map_err(malformed)?;
        Ok((reader.schema(), Box::new(reader)))
    } else {
        let reader = StreamReader::try_new(BufReader::with_capacity(1 << 20, Bounded::new(path, file)?), None)
            .map_err(malformed)?;
        Ok((reader.schema(), Box::new(reader)))
    }
}

/// A file that ends where it ended when it was opened: a stream's announced lengths beyond that are errors at
/// once instead of endless waits on a growing file.
struct Bounded(std::io::Take<File>);

impl Bounded {
    fn new(path: &Path, mut file: File) -> Result<Self> {
        let length = file.seek(SeekFrom::End(0)).map_err(|error| read_failed(path, error))?;
        file.rewind().map_err(|error| read_failed(path, error))?;
        Ok(Bounded(file.take(length)))
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

pub(super) fn open(path: &Path, wanted: Option<&Schema>, seekable: bool) -> Result<Opened> {
    let (arrow_schema, _) = reader(path, seekable)?;
    let choice = Arc::new(ColumnChoice::new(path, &arrow_schema, wanted)?);
    let units = std::fs::metadata(path).map_err(|error| read_failed(path, error))?.len();
    let schema = choice.schema.clone();
    let name = path.display().to_string();
    let path = path.to_path_buf();
    let decode = move |emit: &mut super::ordered::Emit<'_>| {
        let (_, batches) = reader(&path, seekable)?;
        let mut left = units;
        for (index, batch) in batches.enumerate() {
            let failed = |code: ErrorCode, what: String| {
                PartError::Failed(Error::new(code, format!("{}, record batch {index}: {what}", path.display())))
            };
            let batch = batch.map_err(|error| failed(ErrorCode::MalformedInput, error.to_string()))?;
            let rows = choice.adapt(&batch, 0).map_err(|error| failed(error.code, error.message))?;
            // About what the batch took in the file.
            let units = left.min(batch.get_array_memory_size() as u64);
            left -= units;
            emit(InputBatch { rows, units })?;
        }
        Ok(())
    };
    Ok(Opened { schema, units, rows: None, parts: vec![Part { name, decode: Box::new(decode) }] })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::cast::AsArray;
    use arrow_array::types::Int32Type;
    use arrow_array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringViewArray};
    use arrow_ipc::writer::{FileWriter, StreamWriter};
    use hidb::{ErrorCode, Result};

    use super::super::{Input, InputOptions};

    fn batch() -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_000));
        let view: ArrayRef =
            Arc::new(StringViewArray::from_iter_values((0..1_000).map(|n| format!("a longer text {n}"))));
        let words = (0..1_000).map(|n| ["AIR", "RAIL"][n % 2]);
        let dictionary: ArrayRef = Arc::new(words.collect::<DictionaryArray<Int32Type>>());
        RecordBatch::try_from_iter([("n", numbers), ("view", view), ("word", dictionary)]).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<RecordBatch>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let input = Input::open(&[file.path().to_path_buf()], InputOptions::default())?;
        input.batches()?.map(|batch| batch.map(|batch| batch.rows)).collect()
    }

    #[test]
    fn files_and_streams_are_read_and_cut_ones_are_refused() {
        let batch = batch();
        let (mut file, mut stream) = (Vec::new(), Vec::new());
        let mut writer = FileWriter::try_new(&mut file, &batch.schema()).unwrap();
        (0..3).for_each(|_| writer.write(&batch).unwrap());
        writer.finish().unwrap();
        let mut writer = StreamWriter::try_new(&mut stream, &batch.schema()).unwrap();
        (0..3).for_each(|_| writer.write(&batch).unwrap());
        writer.finish().unwrap();
        for bytes in [file, stream] {
            let batches = read(&bytes).unwrap();
            assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3_000);
            assert_eq!(batches[2].column(1).as_string::<i32>().value(999), "a longer text 999");
            assert_eq!(batches[2].column(2).as_string::<i32>().value(1), "RAIL");
            let error = read(&bytes[..bytes.len() / 2]).unwrap_err();
            assert_eq!(error.code, ErrorCode::MalformedInput, "{error}");
        }
    }
}
