"""Whatever happens to a file of tokenized rows: its rows are read as they were written, or the file is named."""

import numpy as np
import pytest
from fuzzing import cases, check
from hypothesis import strategies as st

from t5x_lite import data
from t5x_lite.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file."""
    path, rows = tmp_path_factory.mktemp("rows") / "rows.npz", np.arange(64).reshape(8, 8)
    np.savez_compressed(
        path,
        encoder_input_tokens=rows,
        decoder_input_tokens=rows + 1,
        decoder_target_tokens=rows + 2,
        decoder_loss_weights=np.ones_like(rows),
    )
    return path.read_bytes()


def rows_of(path):
    blocks = data.NpzSource(str(path), num_streams=1).open()
    return np.stack([np.concatenate([row[name] for name in data.FEATURES]) for row in blocks.block(0, 0)])


@cases(few=100, many=1000)
def test_rows_are_read_as_they_were_written_or_not_at_all(n, whole, tmp_path):
    path, counts = tmp_path / "rows.npz", {"unharmed": 0, "refused": 0}
    path.write_bytes(whole)
    right = rows_of(path)

    def reads(case):
        kind, where, what = case
        at = int(where * len(whole))
        path.write_bytes(
            {
                "flip": whole[:at] + bytes([whole[at] ^ 1 << what % 8]) + whole[at + 1 :],
                "truncate": whole[:at],
                "append": whole + bytes(range(what)),
                "overwrite": whole[:at] + bytes([what]) * 9 + whole[at + 9 :],
            }[kind]
        )
        try:
            found = rows_of(path)
        except UserError as e:
            assert "rows.npz" in str(e) and "\n" not in str(e), (case, e)
            counts["refused"] += 1
        else:
            np.testing.assert_array_equal(found, right, err_msg=repr(case))
            counts["unharmed"] += 1

    check(
        n,
        st.tuples(
            st.sampled_from(["flip", "flip", "truncate", "append", "overwrite"]),
            st.floats(0, 1, exclude_max=True),
            st.integers(0, 255),
        ),
        reads,
    )
    assert all(counts.values())
