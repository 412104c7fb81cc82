//! Cores, and sets of them.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        self,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use std::fmt;

/// A core's place in the grid of a device: column x, row y.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreCoord {
    /// Column.
    pub x: u32,
    /// Row.
    pub y: u32,
}

/// A rectangle of cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoreRange {
    /// Its first column and row.
    pub start: CoreCoord,
    /// Its last column and row, inclusive.
    pub end: CoreCoord,
}

/// Rectangles of cores, in an order that counts: shards go over them one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CoreRangeSet(pub Vec<CoreRange>);

/// Cores as an operator's config may ask for them: those that depend on the device are found there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CoreGrid {
    /// These.
    Ranges(CoreRangeSet),
    /// That many, row by row from the first (`num_cores_to_corerangeset`). JSON: `{"cores": n}`.
    Cores(u32),
    /// The cores next to the DRAM banks (`get_optimal_dram_bank_to_logical_worker_assignment`). JSON: `"dram_workers"`.
    DramWorkers,
}

const DRAM_WORKERS: &str = "dram_workers";

impl CoreCoord {
    /// Column and row.
    pub fn new(x: u32, y: u32) -> Self {
        Self { x, y }
    }
}

impl CoreRange {
    /// From one corner to the other, both within.
    pub fn new(start: CoreCoord, end: CoreCoord) -> Self {
        Self { start, end }
    }

    /// How many cores there are; none where the end lies before the start.
    pub fn cores(self) -> u64 {
        let side = |start: u32, end: u32| (u64::from(end) + 1).saturating_sub(u64::from(start));
        side(self.start.x, self.end.x).saturating_mul(side(self.start.y, self.end.y))
    }
}

impl CoreRangeSet {
    /// The rectangle from (0, 0) with so many columns and rows.
    ///
    /// # Panics
    /// If one of them is 0.
    pub fn rectangle(columns: u32, rows: u32) -> Self {
        assert!(columns > 0 && rows > 0, "a rectangle of {columns}x{rows} cores");
        Self(vec![CoreRange::new(CoreCoord::new(0, 0), CoreCoord::new(columns - 1, rows - 1))])
    }

    /// So many cores, row by row, of a device with `columns` cores in a row: the whole rows, then what is left.
    ///
    /// # Panics
    /// If `cores` or `columns` is 0.
    pub fn row_by_row(cores: u32, columns: u32) -> Self {
        assert!(cores > 0 && columns > 0, "{cores} cores in rows of {columns}");
        let (rows, rest) = (cores / columns, cores % columns);
        let mut ranges = Vec::new();
        if rows > 0 {
            ranges.push(CoreRange::new(CoreCoord::new(0, 0), CoreCoord::new(columns - 1, rows - 1)));
        }
        if rest > 0 {
            ranges.push(CoreRange::new(CoreCoord::new(0, rows), CoreCoord::new(rest - 1, rows)));
        }
        Self(ranges)
    }

    /// How many cores there are.
    pub fn cores(&self) -> u64 {
        self.0.iter().fold(0, |sum, range| sum.saturating_add(range.cores()))
    }
}

impl CoreGrid {
    /// How many cores there are; none where only the device knows.
    pub fn cores(&self) -> Option<u64> {
        match self {
            Self::Ranges(ranges) => Some(ranges.cores()),
            Self::Cores(cores) => Some(u64::from(*cores)),
            Self::DramWorkers => None,
        }
    }
}

impl From<CoreRangeSet> for CoreGrid {
    fn from(ranges: CoreRangeSet) -> Self {
        Self::Ranges(ranges)
    }
}

impl fmt::Display for CoreCoord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.x, self.y)
    }
}

impl fmt::Display for CoreRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start == self.end {
            return self.start.fmt(f);
        }
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl fmt::Display for CoreRangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Serialize for CoreCoord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [self.x, self.y].serialize(serializer)
    }
}

impl Serialize for CoreRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [self.start, self.end].serialize(serializer)
    }
}

impl Serialize for CoreGrid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ranges(ranges) => ranges.serialize(serializer),
            Self::Cores(cores) => NumberOfCores { cores: *cores }.serialize(serializer),
            Self::DramWorkers => serializer.serialize_str(DRAM_WORKERS),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NumberOfCores {
    cores: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CoordObject {
    x: u32,
    y: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeObject {
    start: CoreCoord,
    end: CoreCoord,
}

impl<'de> Deserialize<'de> for CoreCoord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = CoreCoord;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a core as [x, y]")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<CoreCoord, A::Error> {
                let [x, y] = Deserialize::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(CoreCoord { x, y })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<CoreCoord, A::Error> {
                let CoordObject { x, y } = Deserialize::deserialize(MapAccessDeserializer::new(map))?;
                Ok(CoreCoord { x, y })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for CoreRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = CoreRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a range of cores as [[x0, y0], [x1, y1]]")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<CoreRange, A::Error> {
                let [start, end] = Deserialize::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(CoreRange { start, end })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<CoreRange, A::Error> {
                let RangeObject { start, end } = Deserialize::deserialize(MapAccessDeserializer::new(map))?;
                Ok(CoreRange { start, end })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for CoreGrid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = CoreGrid;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of core ranges, {{\"cores\": n}} or \"{DRAM_WORKERS}\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CoreGrid, E> {
                if text == DRAM_WORKERS {
                    return Ok(CoreGrid::DramWorkers);
                }
                Err(E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<CoreGrid, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(list)).map(CoreGrid::Ranges)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<CoreGrid, A::Error> {
                let number: NumberOfCores = Deserialize::deserialize(MapAccessDeserializer::new(map))?;
                Ok(CoreGrid::Cores(number.cores))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
