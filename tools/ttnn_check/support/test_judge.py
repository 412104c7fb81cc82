"""What check_config.py makes of the outputs of an operation: every one of them must be as expected. No TT-NN needed.

    python3 -m unittest discover -s tools/ttnn_check/support -t tools/ttnn_check
"""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from check_config import judge  # noqa: E402

L1 = {"memory_layout": "INTERLEAVED", "buffer_type": "L1"}
WEIGHTS = {"shape": [1, 32, 8], "dtype": "bfloat16", "layout": "TILE", "memory_config": L1}
INDICES = {**WEIGHTS, "dtype": "uint16"}
SHARDS = {
    "memory_layout": "HEIGHT_SHARDED",
    "buffer_type": "L1",
    "shard_spec": {"grid": [[[0, 0], [7, 3]]], "shape": [32, 32], "orientation": "ROW_MAJOR"},
}


def complaint(outputs, expect):
    return judge({"expect": expect}, {"accepted": True, "outputs": outputs})


class Judge(unittest.TestCase):
    def test_all_outputs_are_as_expected(self):
        self.assertIsNone(complaint([WEIGHTS, INDICES], [WEIGHTS, INDICES]))
        self.assertIsNone(complaint([WEIGHTS, INDICES], WEIGHTS), "an object is of the first")

    def test_a_later_output_counts(self):
        for key, other in (
            ("shape", [1, 32, 4]),
            ("dtype", "bfloat16"),
            ("layout", "ROW_MAJOR"),
            ("memory_config", SHARDS),
        ):
            found = complaint([WEIGHTS, {**INDICES, key: other}], [WEIGHTS, INDICES])
            self.assertTrue(found and found.startswith(f"output 1: {key} "), found)

    def test_none_is_missing_or_too_many(self):
        self.assertEqual(complaint([WEIGHTS], [WEIGHTS, INDICES]), "1 outputs, expected 2")
        self.assertEqual(complaint([WEIGHTS, INDICES], [WEIGHTS]), "2 outputs, expected 1")


if __name__ == "__main__":
    unittest.main()
