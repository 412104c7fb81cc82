//! The tables of a FlatBuffer from outside, read with every step checked.

use super::HeaderError;

/// A table, and the way to it.
#[derive(Clone)]
pub(super) struct Table<'h> {
    header: &'h [u8],
    at: usize,
    /// Where in the header its vtable lies, and how many bytes that has.
    vtable: (usize, usize),
    path: String,
}

/// A vector, and the way to it.
pub(super) struct Vector<'h> {
    header: &'h [u8],
    /// Its first element.
    at: usize,
    pub(super) count: usize,
    pub(super) path: String,
}

/// `N` bytes of a header.
fn bytes<const N: usize>(header: &[u8], at: usize) -> Option<[u8; N]> {
    header.get(at..)?.first_chunk().copied()
}

/// Where an offset at a place leads.
fn follow(header: &[u8], at: usize) -> Option<usize> {
    let offset = u32::from_le_bytes(bytes(header, at)?);
    let target = at.checked_add(usize::try_from(offset).ok()?)?;
    (target < header.len()).then_some(target)
}

fn outside(path: &str) -> HeaderError {
    HeaderError::new(path, "leads out of the header")
}

impl<'h> Table<'h> {
    /// The root of a FlatBuffer.
    pub(super) fn root(header: &'h [u8]) -> Result<Self, HeaderError> {
        let at = follow(header, 0).ok_or_else(|| outside("header"))?;
        Self::at(header, at, String::new())
    }

    fn at(header: &'h [u8], at: usize, path: String) -> Result<Self, HeaderError> {
        let vtable = || {
            let back = i32::from_le_bytes(bytes(header, at)?);
            let start = usize::try_from(i64::try_from(at).ok()? - i64::from(back)).ok()?;
            let length = usize::from(u16::from_le_bytes(bytes(header, start)?));
            (length >= 4 && length <= header.len() - start).then_some((start, length))
        };
        match vtable() {
            Some(vtable) => Ok(Self { header, at, vtable, path }),
            None => Err(outside(if path.is_empty() { "header" } else { &path })),
        }
    }

    /// The name of a field.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// An error of a field.
    pub(super) fn error(&self, name: &str, message: impl Into<String>) -> HeaderError {
        HeaderError::new(self.path(name), message)
    }

    /// Where a field lies; none if it is left out.
    fn place(&self, field: usize) -> Option<usize> {
        let (start, length) = self.vtable;
        let slot = 4 + 2 * field;
        if slot + 2 > length {
            return None;
        }
        match u16::from_le_bytes(bytes(self.header, start + slot)?) {
            0 => None,
            offset => Some(self.at + usize::from(offset)),
        }
    }

    fn scalar<const N: usize>(&self, field: usize, name: &str) -> Result<[u8; N], HeaderError> {
        match self.place(field) {
            // What is left out has the default value, 0 in all tables of this format.
            None => Ok([0; N]),
            Some(at) => bytes(self.header, at).ok_or_else(|| outside(&self.path(name))),
        }
    }

    pub(super) fn u8(&self, field: usize, name: &str) -> Result<u8, HeaderError> {
        self.scalar(field, name).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&self, field: usize, name: &str) -> Result<u16, HeaderError> {
        self.scalar(field, name).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, field: usize, name: &str) -> Result<u32, HeaderError> {
        self.scalar(field, name).map(u32::from_le_bytes)
    }

    pub(super) fn i32(&self, field: usize, name: &str) -> Result<i32, HeaderError> {
        self.scalar(field, name).map(i32::from_le_bytes)
    }

    pub(super) fn bool(&self, field: usize, name: &str) -> Result<bool, HeaderError> {
        match self.u8(field, name)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error(name, format!("expected 0 or 1, got {other}"))),
        }
    }

    /// Where a field's offset leads.
    fn reference(&self, field: usize, name: &str) -> Result<Option<usize>, HeaderError> {
        let Some(at) = self.place(field) else { return Ok(None) };
        follow(self.header, at).map(Some).ok_or_else(|| outside(&self.path(name)))
    }

    /// A struct of two numbers that an offset leads to.
    pub(super) fn pair(&self, field: usize, name: &str) -> Result<Option<[u64; 2]>, HeaderError> {
        let Some(at) = self.reference(field, name)? else { return Ok(None) };
        let pair: Option<[u8; 16]> = bytes(self.header, at);
        let pair = pair.ok_or_else(|| outside(&self.path(name)))?;
        let (halves, _) = pair.as_chunks::<8>();
        Ok(Some([u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1])]))
    }

    pub(super) fn table(&self, field: usize, name: &str) -> Result<Option<Self>, HeaderError> {
        let Some(at) = self.reference(field, name)? else { return Ok(None) };
        Self::at(self.header, at, self.path(name)).map(Some)
    }

    /// A table that must be there.
    pub(super) fn needs_table(&self, field: usize, name: &str) -> Result<Self, HeaderError> {
        self.table(field, name)?.ok_or_else(|| self.error(name, "is missing"))
    }

    /// A vector of offsets or of numbers, of 4 bytes each. It has `most` elements at most.
    pub(super) fn vector(
        &self,
        field: usize,
        name: &str,
        most: usize,
    ) -> Result<Option<Vector<'h>>, HeaderError> {
        let Some(at) = self.reference(field, name)? else { return Ok(None) };
        let path = self.path(name);
        let count = bytes(self.header, at).map(u32::from_le_bytes).ok_or_else(|| outside(&path))?;
        let count = usize::try_from(count).map_err(|_| outside(&path))?;
        let at = at + 4;
        if count > (self.header.len() - at) / 4 {
            return Err(outside(&path));
        }
        if count > most {
            return Err(HeaderError::new(path, format!("expected {most} elements at most, got {count}")));
        }
        Ok(Some(Vector { header: self.header, at, count, path }))
    }

    /// A vector that must be there.
    pub(super) fn needs_vector(
        &self,
        field: usize,
        name: &str,
        most: usize,
    ) -> Result<Vector<'h>, HeaderError> {
        self.vector(field, name, most)?.ok_or_else(|| self.error(name, "is missing"))
    }
}

impl<'h> Vector<'h> {
    /// Its numbers.
    pub(super) fn numbers(&self) -> Vec<u32> {
        let end = self.at + 4 * self.count;
        self.header[self.at..end].as_chunks().0.iter().map(|&number| u32::from_le_bytes(number)).collect()
    }

    /// Its tables, one after the other.
    pub(super) fn tables(&self) -> impl Iterator<Item = Result<Table<'h>, HeaderError>> {
        (0..self.count).map(|index| {
            let path = format!("{}[{index}]", self.path);
            let at = follow(self.header, self.at + 4 * index).ok_or_else(|| outside(&path))?;
            Table::at(self.header, at, path)
        })
    }
}
