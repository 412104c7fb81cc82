//! Numbers, strings and lists of a GGUF file's head. Nothing is allocated by a count that the file only claims.

/// A value of a GGUF file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An integer of any width and sign.
    Integer(i128),
    /// A number of single precision, by its shortest decimal form: 0.1 is 0.1.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type.
    List(Vec<GgufValue>),
}

impl GgufValue {
    /// A number of 0 and more.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Integer(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list.
    pub fn as_list(&self) -> Option<&[GgufValue]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }
}

/// The type number of a list.
const LIST: u32 = 9;
/// Values of a list at most: a vocabulary's tokens are far fewer.
const MOST_VALUES: u64 = 1 << 24;

/// A place in a file.
pub(super) struct Reader<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn bytes(&mut self, count: u64) -> Result<&'a [u8], String> {
        let rest = &self.file[self.position..];
        let bytes = usize::try_from(count).ok().and_then(|count| rest.get(..count)).ok_or_else(|| {
            format!("is truncated: expected {count} bytes at {}, got {}", self.position, rest.len())
        })?;
        self.position += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(*self.bytes(N as u64)?.first_chunk().expect("as many as were asked for"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn string(&mut self) -> Result<String, String> {
        let (at, length) = (self.position, self.u64()?);
        let bytes = self.bytes(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| format!("the text at {at} is not UTF-8"))
    }

    pub(super) fn value(&mut self) -> Result<GgufValue, String> {
        match self.u32()? {
            LIST => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // Each value takes a byte or more, so a count that lies ends at the end of the file; and that may be
                // far behind the head.
                if count > MOST_VALUES {
                    return Err(format!("a list of {count} values, expected {MOST_VALUES} at most"));
                }
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(self.scalar(kind)?);
                }
                Ok(GgufValue::List(list))
            }
            kind => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<GgufValue, String> {
        let integer = |value: i128| Ok(GgufValue::Integer(value));
        match kind {
            0 => integer(self.array::<1>()?[0].into()),
            1 => integer(i8::from_le_bytes(self.array()?).into()),
            2 => integer(u16::from_le_bytes(self.array()?).into()),
            3 => integer(i16::from_le_bytes(self.array()?).into()),
            4 => integer(self.u32()?.into()),
            5 => integer(i32::from_le_bytes(self.array()?).into()),
            6 => {
                let value = f32::from_le_bytes(self.array()?);
                Ok(GgufValue::Float(value.to_string().parse().expect("a printed number is one")))
            }
            7 => match self.array::<1>()? {
                [0] => Ok(GgufValue::Bool(false)),
                [1] => Ok(GgufValue::Bool(true)),
                [other] => Err(format!("expected 0 or 1 for false or true, got {other}")),
            },
            8 => self.string().map(GgufValue::Text),
            10 => integer(self.u64()?.into()),
            11 => integer(i64::from_le_bytes(self.array()?).into()),
            12 => Ok(GgufValue::Float(f64::from_le_bytes(self.array()?))),
            LIST => Err("expected a list of plain values, got one of lists".to_owned()),
            other => Err(format!("expected a type of value from 0 to 12, got {other}")),
        }
    }
}
