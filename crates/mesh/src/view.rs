//! Bytes that several ranks may read, and parts of them.

use std::{borrow::Cow, sync::Arc};

/// Memory that whoever holds it may read.
#[derive(Clone, Debug)]
pub enum Buffer {
    /// f32 values.
    Values(Arc<Vec<f32>>),
    /// Anything else.
    Bytes(Arc<Vec<u8>>),
}

impl Buffer {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Values(values) => bytemuck::cast_slice(values),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Self {
        Self::Values(Arc::new(values))
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(Arc::new(bytes))
    }
}

/// Rows of bytes in a buffer, equally wide and equally far apart: a matrix, some of its rows, or some of its columns.
#[derive(Clone, Debug)]
pub struct View {
    buffer: Buffer,
    start: usize,
    rows: usize,
    width: usize,
    stride: usize,
}

impl View {
    /// All of a buffer, as one row.
    pub fn whole(buffer: Buffer) -> Self {
        let width = buffer.bytes().len();
        Self { buffer, start: 0, rows: 1, width, stride: width }
    }

    /// The bytes from `start`, as one row.
    ///
    /// # Panics
    /// If the buffer ends before.
    pub fn range(buffer: Buffer, start: usize, length: usize) -> Self {
        Self::strided(buffer, start, 1, [length, length])
    }

    /// `rows` rows of `width` bytes, `stride` bytes from one to the next.
    ///
    /// # Panics
    /// If the buffer ends before the last row.
    pub fn strided(buffer: Buffer, start: usize, rows: usize, [width, stride]: [usize; 2]) -> Self {
        // No rows lie anywhere.
        let (start, end) = if rows == 0 { (0, 0) } else { (start, start + (rows - 1) * stride + width) };
        assert!(width <= stride && end <= buffer.bytes().len(), "{rows} rows of {width} bytes end at {end}");
        Self { buffer, start, rows, width, stride }
    }

    /// How many bytes it has.
    pub fn length(&self) -> usize {
        self.rows * self.width
    }

    /// Its rows.
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        let bytes = self.buffer.bytes();
        (0..self.rows).map(move |row| &bytes[self.start + row * self.stride..][..self.width])
    }

    /// Its bytes, where they lie one after the other.
    pub fn contiguous(&self) -> Option<&[u8]> {
        let one_run = self.rows <= 1 || self.width == self.stride;
        one_run.then(|| &self.buffer.bytes()[self.start..][..self.length()])
    }

    /// Its bytes one after the other, copied where they do not lie so.
    pub fn to_contiguous(&self) -> Cow<'_, [u8]> {
        self.contiguous().map_or_else(|| self.rows().collect::<Vec<_>>().concat().into(), Cow::Borrowed)
    }

    /// Whether it is the whole of its buffer.
    fn is_whole(&self) -> bool {
        self.contiguous().is_some_and(|bytes| bytes.len() == self.buffer.bytes().len())
    }

    /// Its f32 values, not copied where nobody else can see them.
    pub(crate) fn into_values(self) -> Vec<f32> {
        match self {
            Self { buffer: Buffer::Values(ref values), .. } if self.is_whole() => {
                let values = Arc::clone(values);
                drop(self);
                Arc::unwrap_or_clone(values)
            }
            other => {
                let mut values = Vec::with_capacity(other.length() / 4);
                other.rows().for_each(|row| crate::payload::append(&mut values, row));
                values
            }
        }
    }

    /// Its bytes, not copied where they are all that there is.
    pub(crate) fn into_bytes(self) -> Arc<Vec<u8>> {
        match &self.buffer {
            Buffer::Bytes(bytes) if self.is_whole() => Arc::clone(bytes),
            _ => Arc::new(self.to_contiguous().into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_where_they_lie() {
        let buffer = Buffer::from((0..12).collect::<Vec<u8>>());
        let columns = View::strided(buffer.clone(), 1, 3, [2, 4]);
        assert_eq!(columns.rows().collect::<Vec<_>>(), [[1, 2], [5, 6], [9, 10]]);
        assert_eq!((columns.length(), columns.contiguous()), (6, None));
        assert_eq!(*columns.to_contiguous(), [1, 2, 5, 6, 9, 10]);
        let rows = View::strided(buffer, 4, 2, [4, 4]);
        assert_eq!(rows.contiguous(), Some(&[4, 5, 6, 7, 8, 9, 10, 11][..]));
    }

    #[test]
    fn what_nobody_else_holds_is_not_copied() {
        let values = vec![1.0_f32, 2.0];
        let address = values.as_ptr();
        let values = View::whole(Buffer::from(values)).into_values();
        assert_eq!(values.as_ptr(), address);
        let shared = Buffer::from(vec![1_u8, 2]);
        let bytes = View::whole(shared.clone()).into_bytes();
        assert_eq!(bytes.as_ptr(), shared.bytes().as_ptr());
    }
}
