//! TT-NN's enumerations.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// A name that an enumeration does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {expected}, got {got:?}")]
pub struct UnknownName {
    /// The names that it has.
    pub expected: String,
    /// The name that was given.
    pub got: String,
}

/// An enumeration with TT-NN's names and numbers. JSON has the names; the numbers are read too.
macro_rules! enumeration {
    ($(#[$docs:meta])* $name:ident { $($(#[$variant_docs:meta])* $variant:ident = $text:literal, $code:literal;)* }) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_docs])* $variant,)*
        }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// TT-NN's name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// TT-NN's number, in files and in its JSON.
            pub fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)* }
            }

            /// The one with a number.
            pub fn from_code(code: u64) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| u64::from(one.code()) == code)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|one| one.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
                    let names: Vec<&str> = Self::ALL.iter().map(|one| one.name()).collect();
                    UnknownName { expected: names.join(", "), got: name.to_owned() }
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a ", stringify!($name), " by name or number"))
                    }

                    fn visit_str<E: de::Error>(self, name: &str) -> Result<$name, E> {
                        name.parse().map_err(E::custom)
                    }

                    fn visit_u64<E: de::Error>(self, code: u64) -> Result<$name, E> {
                        $name::from_code(code)
                            .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(code), &self))
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

enumeration! {
    /// The type of a tensor's elements. bfloat2_b is none of them: upstream packs it, but no file can hold it.
    DataType {
        /// The upper half of a float32.
        Bfloat16 = "bfloat16", 0;
        /// IEEE single precision.
        Float32 = "float32", 1;
        /// Unsigned, 32 bits.
        Uint32 = "uint32", 2;
        /// Sign and 7 bits each, an exponent for 16.
        Bfloat8B = "bfloat8_b", 3;
        /// Sign and 3 bits each, an exponent for 16.
        Bfloat4B = "bfloat4_b", 4;
        /// Unsigned, 8 bits.
        Uint8 = "uint8", 5;
        /// Unsigned, 16 bits.
        Uint16 = "uint16", 6;
        /// Signed, 32 bits.
        Int32 = "int32", 7;
    }
}

enumeration! {
    /// How the elements of a tensor follow one another.
    Layout {
        /// Row by row.
        RowMajor = "ROW_MAJOR", 0;
        /// Tile by tile.
        Tile = "TILE", 1;
    }
}

enumeration! {
    /// How a tensor's pages are dealt to banks or cores (`TensorMemoryLayout`). 1 was once another layout.
    MemoryLayout {
        /// One after the other, over all banks.
        Interleaved = "INTERLEAVED", 0;
        /// Rows by core.
        HeightSharded = "HEIGHT_SHARDED", 2;
        /// Columns by core.
        WidthSharded = "WIDTH_SHARDED", 3;
        /// Rows and columns over a grid of cores.
        BlockSharded = "BLOCK_SHARDED", 4;
        /// Blocks of any number of dimensions.
        NdSharded = "ND_SHARDED", 5;
    }
}

enumeration! {
    /// The memory in which a tensor lies.
    BufferType {
        /// The device's DRAM.
        Dram = "DRAM", 0;
        /// The cores' own memory.
        L1 = "L1", 1;
        /// The host's memory.
        SystemMemory = "SYSTEM_MEMORY", 2;
        /// A part of the cores' memory that is set aside for small buffers.
        L1Small = "L1_SMALL", 3;
        /// DRAM that is set aside for traces.
        Trace = "TRACE", 4;
    }
}

enumeration! {
    /// The order in which shards go over the cores.
    ShardOrientation {
        /// Row by row.
        RowMajor = "ROW_MAJOR", 0;
        /// Column by column.
        ColMajor = "COL_MAJOR", 1;
    }
}

enumeration! {
    /// How shards are dealt to cores.
    ShardDistributionStrategy {
        /// One after the other.
        RoundRobin1d = "ROUND_ROBIN_1D", 0;
        /// Over a grid of cores as they lie in the tensor.
        Grid2d = "GRID_2D", 1;
        /// As many as a core gets, one after the other, then the next core.
        Contiguous1d = "CONTIGUOUS_1D", 2;
    }
}

enumeration! {
    /// How many passes a product of tiles takes, and so how many bits of its factors count.
    MathFidelity {
        /// One pass: 5 bits of one factor, 7 of the other.
        LoFi = "LoFi", 0;
        /// Two passes.
        HiFi2 = "HiFi2", 2;
        /// Three passes.
        HiFi3 = "HiFi3", 3;
        /// Four passes: all bits of bfloat16.
        HiFi4 = "HiFi4", 4;
    }
}

enumeration! {
    /// How the devices of a collective are connected.
    Topology {
        /// In a line, with two ends.
        Linear = "Linear", 1;
        /// In a ring.
        Ring = "Ring", 2;
        /// In rows and columns.
        Mesh = "Mesh", 3;
        /// In rows and columns that are rings.
        Torus = "Torus", 4;
    }
}
