//! What the tests of the kernels share: random weights whose values are known in f64, and the error that f32 may
//! make.

use crate::{BlockScales, Format, Isa, Kernels, MatrixRef, MatrixView, fp8_e4m3_to_f32};

/// Half of the distance from 1 to the next f32: the relative error of one rounding.
const ROUNDING: f64 = f32::EPSILON as f64 / 2.0;

/// The tables of this machine. Names on stderr those that it cannot run.
#[allow(clippy::print_stderr, reason = "what a test leaves out must be seen")]
pub(crate) fn tables() -> Vec<&'static Kernels> {
    let (here, elsewhere): (Vec<Isa>, Vec<Isa>) = Isa::ALL.into_iter().partition(|isa| isa.is_available());
    for isa in elsewhere {
        eprintln!("skipped: {isa} is not available on this machine");
    }
    here.into_iter().map(|isa| Kernels::for_isa(isa).expect("an available table")).collect()
}

/// A bound of the error of a sum of `terms` products whose magnitudes add up to `magnitude`, summed in f32 in any
/// order (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Five more roundings: the value times
/// its scale, the product, the scale of a block, the sum of what was there before, and the last conversion.
pub(crate) fn sum_error(terms: usize, magnitude: f64) -> f64 {
    let roundings = (terms + 5) as f64 * ROUNDING;
    // Where products are subnormal each may lose half of the smallest subnormal.
    roundings / (1.0 - roundings) * magnitude + terms as f64 * f64::from(f32::from_bits(1))
}

/// SplitMix64: enough for test data, the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between -1 and 1, in steps that an f32 holds.
    pub(crate) fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// A random matrix with a gap between rows that must not be read.
pub(crate) struct Rows {
    pub(crate) values: Vec<f32>,
    pub(crate) rows: usize,
    cols: usize,
}

/// Values between the rows of [`Rows`].
pub(crate) const GAP: usize = 3;

impl Rows {
    pub(crate) fn random(rows: usize, cols: usize, random: &mut Random) -> Self {
        let row = |_| [random.values(cols), vec![f32::NAN; GAP]].concat();
        Self { values: (0..rows).flat_map(row).collect(), rows, cols }
    }

    pub(crate) fn view(&self) -> MatrixRef<'_> {
        MatrixRef::strided(&self.values, self.rows, self.cols, self.cols + GAP)
    }
}

/// How to make a random matrix of weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Rows and columns of a block of FP8.
    pub(crate) block: (usize, usize),
    /// The row of the whole matrix that row 0 is.
    pub(crate) first_row: usize,
    /// Bytes before the first element: what alignment the weights have.
    pub(crate) offset: usize,
}

/// Weights in their format, and what they are worth.
pub(crate) struct Weights {
    spec: Spec,
    bytes: Vec<u8>,
    scales: Vec<u8>,
    values: Vec<f64>,
    parts: Vec<Parts>,
}

/// What an element is made of: `integer * scale - minimum`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    /// What the element's bits are worth.
    pub(crate) integer: f64,
    pub(crate) scale: f64,
    pub(crate) minimum: f64,
    pub(crate) is_fp8: bool,
}

impl Parts {
    /// Of formats without a minimum.
    fn new(integer: f64, scale: f64) -> Self {
        Self { integer, scale, minimum: 0.0, is_fp8: false }
    }

    fn value(&self) -> f64 {
        self.integer * self.scale - self.minimum
    }
}

impl Weights {
    pub(crate) fn random(spec: Spec, random: &mut Random) -> Self {
        let grid_cols = spec.cols.div_ceil(spec.block.1);
        let grid_rows = (spec.first_row + spec.rows).div_ceil(spec.block.0);
        let grid: Vec<f32> = (0..grid_rows * grid_cols).map(|_| random.value() * 0.01).collect();
        let mut bytes = vec![0; spec.offset];
        let mut parts = Vec::new();
        for row in 0..spec.rows {
            for col in (0..spec.cols).step_by(spec.format.block_cols()) {
                let block = (spec.first_row + row) / spec.block.0 * grid_cols + col / spec.block.1;
                push_block(spec.format, random, f64::from(grid[block]), &mut bytes, &mut parts);
            }
        }
        let scales =
            std::iter::repeat_n(0, spec.offset).chain(grid.iter().flat_map(|scale| scale.to_le_bytes()));
        let values = parts.iter().map(Parts::value).collect();
        Self { spec, bytes, scales: scales.collect(), values, parts }
    }

    pub(crate) fn view(&self) -> MatrixView<'_> {
        let Spec { format, rows, cols, block, first_row, offset } = self.spec;
        let scales = BlockScales {
            bytes: &self.scales[offset..],
            block_rows: block.0,
            block_cols: block.1,
            grid_cols: cols.div_ceil(block.1),
            first_row,
        };
        let scales = (format == Format::Fp8).then_some(scales);
        MatrixView::from_bytes(format, &self.bytes[offset..], rows, cols, scales)
    }

    /// The exact value of an element.
    pub(crate) fn value(&self, row: usize, col: usize) -> f64 {
        self.values[row * self.spec.cols + col]
    }

    /// What an element is made of.
    pub(crate) fn parts(&self, row: usize, col: usize) -> Parts {
        self.parts[row * self.spec.cols + col]
    }

    /// The stored byte of an FP8 element.
    pub(crate) fn fp8_mut(&mut self, row: usize, col: usize) -> &mut u8 {
        assert_eq!(self.spec.format, Format::Fp8);
        &mut self.bytes[self.spec.offset + row * self.spec.cols + col]
    }
}

/// Appends a random block of finite elements, and what they are made of.
fn push_block(format: Format, random: &mut Random, scale: f64, bytes: &mut Vec<u8>, values: &mut Vec<Parts>) {
    match format {
        Format::F32 => {
            let value = random.value();
            bytes.extend(value.to_le_bytes());
            values.push(Parts::new(f64::from(value), 1.0));
        }
        Format::Bf16 => {
            let upper = random.value().to_bits() & 0xffff_0000;
            bytes.extend(((upper >> 16) as u16).to_le_bytes());
            values.push(Parts::new(f64::from(f32::from_bits(upper)), 1.0));
        }
        Format::Fp8 => {
            let byte = (random.bits() >> 56) as u8;
            let byte = if byte & 0x7f == 0x7f { byte & 0x80 } else { byte };
            bytes.push(byte);
            values.push(Parts { is_fp8: true, ..Parts::new(f64::from(fp8_e4m3_to_f32(byte)), scale) });
        }
        Format::Q8_0 => {
            let d = push_half(random, bytes);
            for _ in 0..format.block_cols() {
                bytes.push((random.bits() >> 56) as u8);
                values.push(Parts::new(f64::from(bytes[bytes.len() - 1].cast_signed()), d));
            }
        }
        Format::Q4K => push_q4k(random, bytes, values),
    }
}

/// From the format's description: any bytes are a block whose two factors are finite.
fn push_q4k(random: &mut Random, bytes: &mut Vec<u8>, values: &mut Vec<Parts>) {
    let (d, dmin) = (push_half(random, bytes), push_half(random, bytes));
    let rest: Vec<u8> = (0..140).map(|_| (random.bits() >> 56) as u8).collect();
    bytes.extend(&rest);
    let (packed, quants) = rest.split_at(12);
    for element in 0..256 {
        let group = element / 32;
        let (scale, minimum) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => (
                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
            ),
        };
        let byte = quants[element / 64 * 32 + element % 32];
        let bits = if element % 64 < 32 { byte & 15 } else { byte >> 4 };
        values.push(Parts {
            minimum: dmin * f64::from(minimum),
            ..Parts::new(f64::from(bits), d * f64::from(scale))
        });
    }
}

/// Appends a half between -1 and 1, and gives its value.
fn push_half(random: &mut Random, bytes: &mut Vec<u8>) -> f64 {
    let half = half::f16::from_f32(random.value());
    bytes.extend(half.to_le_bytes());
    half.to_f64()
}

/// Matrices of every format with rows, columns, blocks, first rows and alignments that are awkward in turn.
pub(crate) fn specs(rows: &[usize], cols: &[usize]) -> Vec<Spec> {
    // As many as share no factor with the lengths of lists of columns, so that each comes with each.
    let blocks = [(128, 128), (3, 5), (32, 64), (128, 48), (32, 256), (8, 128), (64, 384)];
    let mut specs = Vec::new();
    for &rows in rows {
        for &cols in cols {
            let turn = specs.len() / Format::ALL.len();
            let block = blocks[turn % blocks.len()];
            let first_row = [0, 2, 130][turn % 3];
            for format in Format::ALL {
                // What ggml stores has whole blocks.
                let cols = cols.next_multiple_of(format.block_cols());
                specs.push(Spec { format, rows, cols, block, first_row, offset: turn % 5 });
            }
        }
    }
    specs
}
