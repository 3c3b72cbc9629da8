//! Writing vectors as `.npy` or `.fvecs`.
//!
//! Invariant: a file that was not finished is not one: `.npy` says how many rows it has before they are written, and a file
//! with fewer is refused by whoever reads it. [`ArrayFile::finish`] checks that all came.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What the data of a `.npy` file starts at a multiple of (NumPy's `ARRAY_ALIGN`).
const ALIGNMENT: usize = 64;

const BUFFER_BYTES: usize = 1 << 20;

/// A file on its way.
pub(super) struct ArrayFile {
    path: PathBuf,
    output: BufWriter<File>,
    dimension: usize,
    rows_left: u64,
    /// `.fvecs`: each row stands behind its dimension.
    is_prefixed: bool,
}

impl ArrayFile {
    /// Makes a file for so many rows of f32; its extension says how it is written.
    pub(super) fn create(path: &Path, rows: u64, dimension: usize) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let is_prefixed = match extension.to_ascii_lowercase().as_str() {
            "npy" => false,
            "fvecs" => true,
            _ => bail!("{}: vectors are written as .npy or .fvecs: name the file so", path.display()),
        };
        let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
        let output = BufWriter::with_capacity(BUFFER_BYTES, file);
        let mut array = ArrayFile { path: path.to_path_buf(), output, dimension, rows_left: rows, is_prefixed };
        if !is_prefixed {
            array.put(&npy_header(rows, dimension))?;
        }
        Ok(array)
    }

    /// Writes whole rows.
    pub(super) fn write(&mut self, values: &[f32]) -> Result<()> {
        for row in values.chunks_exact(self.dimension) {
            if self.is_prefixed {
                self.put(&(self.dimension as i32).to_le_bytes())?;
            }
            for value in row {
                self.put(&value.to_le_bytes())?;
            }
        }
        let rows = (values.len() / self.dimension) as u64;
        self.rows_left = self.rows_left.checked_sub(rows).context("more rows than the file was made for")?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).with_context(|| format!("writing {}", self.path.display()))
    }

    /// All rows were written.
    pub(super) fn finish(mut self) -> Result<()> {
        if self.rows_left > 0 {
            bail!("{}: {} rows are missing", self.path.display(), self.rows_left);
        }
        self.output.flush().with_context(|| format!("writing {}", self.path.display()))
    }
}

/// The header of version 1.0, as `numpy/lib/format.py` writes it.
fn npy_header(rows: u64, dimension: usize) -> Vec<u8> {
    const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
    let mut dictionary = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}");
    let length = MAGIC.len() + 2 + dictionary.len() + 1;
    dictionary.push_str(&" ".repeat(length.next_multiple_of(ALIGNMENT) - length));
    dictionary.push('\n');
    [MAGIC, &(dictionary.len() as u16).to_le_bytes(), dictionary.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use heliostat_client::input::arrays::{ArrayElement, ArrayFormat, ArrayReader};

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<f32> = (0..21).map(|value| value as f32 * 0.37 - 2.0).collect();
        for (name, format) in [("a.npy", ArrayFormat::Npy), ("b.FVECS", ArrayFormat::Fvecs)] {
            let path = folder.path().join(name);
            let mut file = ArrayFile::create(&path, 7, 3).unwrap();
            file.write(&values[..12]).unwrap();
            file.write(&values[12..]).unwrap();
            file.finish().unwrap();
            let mut reader = ArrayReader::open(&path).unwrap();
            let shape = (reader.format(), reader.element(), reader.rows(), reader.dimension());
            assert_eq!(shape, (format, ArrayElement::F32, Some(7), 3));
            let mut elements = Vec::new();
            assert_eq!(reader.read_rows(10, &mut elements).unwrap(), 7);
            assert_eq!(ArrayElement::F32.numbers(&elements), values, "{name}");
        }
        assert_eq!(npy_header(7, 3).len() % ALIGNMENT, 0);
    }

    #[test]
    fn too_many_and_too_few_rows_are_errors_and_so_is_another_extension() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut file = ArrayFile::create(&path, 2, 2).unwrap();
        file.write(&[1.0, 2.0]).unwrap();
        assert!(file.write(&[1.0, 2.0, 3.0, 4.0]).is_err());
        let mut file = ArrayFile::create(&path, 2, 2).unwrap();
        file.write(&[1.0, 2.0]).unwrap();
        assert!(file.finish().unwrap_err().to_string().contains("1 rows are missing"));
        assert!(ArrayFile::create(&folder.path().join("a.csv"), 1, 1).is_err());
    }
}
