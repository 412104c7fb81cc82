//! Instruction sets that have a table of their own, and whether this machine has them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__cpuid;
use std::{fmt, str::FromStr};

/// An instruction set, or one with what else decides how it is used best. Each has one table of [`Kernels`](crate::Kernels).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable Rust: the specification of every kernel, the fallback and the oracle of the tests.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C (every server since 2015).
    Avx2,
    /// The same instructions for processors that compute a vector's halves one after the other (AMD's Zen 1): few tokens of q8_0
    /// are multiplied in integers, and so rounded. Any machine with AVX2 can be asked for it.
    Avx2Halves,
    /// x86-64 with AVX-512 and its extensions BW, DQ, VL, VBMI and VNNI (Intel's servers since Ice Lake, AMD's since Zen 4).
    Avx512,
}

impl Isa {
    /// Every instruction set that this crate knows, each behind those that it is preferred to where it is meant.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx2Halves, Isa::Avx512];

    /// The instruction set that this machine is fastest with: the last of [`ALL`](Self::ALL) that it has, but `Avx2Halves` only
    /// where the processor says that its units are 128 bits wide. Asks the processor.
    pub fn best() -> Self {
        let is_meant = |isa: &Isa| *isa != Isa::Avx2Halves || computes_halves();
        Isa::ALL
            .into_iter()
            .rfind(|isa| isa.is_available() && is_meant(isa))
            .expect("scalar is always available")
    }

    /// Whether this machine can run it. Asks the processor, so it is meant for start-up, not for loops.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Avx2 | Isa::Avx2Halves => has_avx2(),
            Isa::Avx512 => has_avx2() && has_avx512(),
        }
    }

    /// The name that is printed and typed.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx2Halves => "avx2-halves",
            Isa::Avx512 => "avx512",
        }
    }
}

/// There is no instruction set of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa(String);

impl fmt::Display for UnknownIsa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Isa::ALL.map(Isa::name).join(", ");
        write!(formatter, "no instruction set is named {:?}; there are {names}", self.0)
    }
}

impl std::error::Error for UnknownIsa {}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn computes_halves() -> bool {
    /// Where AMD's processors say how wide their vector units are (AMD64 Architecture Programmer's Manual, volume 3, appendix
    /// E.4.14, "Performance Optimization Identifiers").
    const UNITS: u32 = 0x8000_001a;
    const HAVE_128_BITS: u32 = 1;
    const HAVE_256_BITS: u32 = 1 << 2;
    // Only AMD's have SSE4a. A virtual machine may say nothing of its units: neither bit.
    is_x86_feature_detected!("sse4a")
        && __cpuid(0x8000_0000).eax >= UNITS
        && __cpuid(UNITS).eax & (HAVE_128_BITS | HAVE_256_BITS) == HAVE_128_BITS
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn computes_halves() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
        let error = "AVX".parse::<Isa>().unwrap_err().to_string();
        assert_eq!(error, "no instruction set is named \"AVX\"; there are scalar, avx2, avx2-halves, avx512");
    }
}
