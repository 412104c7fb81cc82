"""What ggml's own quantisers make of seeded weights: `testdata/quantize/q8_0.safetensors`, bit for bit, and the mean
squared errors of q4_K that `crates/kernels/src/quantize/tests.rs` compares with.

    python quantize.py LIBRARY

LIBRARY is ggml's base library, as the PyPI package `llama-cpp-python` installs it: `llama_cpp/lib/libggml-base.so`. The
q8_0 blocks come from `gguf.quants`, whose rounding is the reference's, and are checked against the library.
"""

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
ELEMENTS = 1 << 16


def splitmix(seed: int, count: int) -> np.ndarray:
    """The bits of `Random` in crates/kernels/src/testing.rs."""
    state = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def uniform(seed: int, count: int) -> np.ndarray:
    return (splitmix(seed, count) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def distributions() -> dict[str, np.ndarray]:
    """The same arithmetic as in the test, exact in float32 but for rounding that both do alike."""
    twelve = uniform(2, 12 * ELEMENTS).reshape(ELEMENTS, 12)
    gaussian = twelve[:, 0].copy()
    for i in range(1, 12):
        gaussian = gaussian + twelve[:, i]  # the central limit theorem
    tail = uniform(3, ELEMENTS)
    return {
        "uniform": uniform(1, ELEMENTS),
        "gaussian": gaussian * np.float32(0.5),
        # The fifth power: most are small, the largest are many standard deviations away.
        "heavy-tailed": tail * tail * tail * tail * tail,
    }


def ggml_error(library: ctypes.CDLL, values: np.ndarray) -> float:
    blocks = np.zeros(len(values) // 256 * 144, np.uint8)
    pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)
    library.quantize_row_q4_K_ref(pointer(values), pointer(blocks), ctypes.c_int64(len(values)))
    back = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K)
    return float(np.mean((back.astype(np.float64) - values.astype(np.float64)) ** 2))


def q8_0(library: ctypes.CDLL) -> None:
    # Magnitudes from subnormal halves up, a block of zeros, a lone spike, and quotients that lie halfway.
    values = uniform(4, 64 * 32).reshape(64, 32) * np.float32(2.0) ** np.arange(-40, 24, dtype=np.float32)[:, None]
    values[5] = 0
    values[6] = 0
    values[6, 31] = -3
    values[7] = np.arange(32, dtype=np.float32) - np.float32(15.5)
    values[7, 0] = 127
    values = values.astype(np.float32).reshape(-1)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    own = np.zeros_like(blocks)
    library.quantize_row_q8_0_ref(values.ctypes.data_as(ctypes.c_void_p), own.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(values)))
    assert np.array_equal(blocks, own)
    folder = ROOT / "testdata/quantize"
    folder.mkdir(exist_ok=True)
    save_file({"values": values, "blocks": blocks}, folder / "q8_0.safetensors")


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    q8_0(library)
    for name, values in distributions().items():
        print(f"{name}: sum {np.sum(values.astype(np.float64)):.6f}, ggml's q4_K mean squared error {ggml_error(library, values):.6e}")


if __name__ == "__main__":
    main()
