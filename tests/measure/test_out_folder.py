# SPDX-License-Identifier: Apache-2.0
"""A folder that takes no files is named before anything is measured."""

import pytest

from sglang_longflow.errors import ConfigError
from sglang_longflow.measure.out_folder import writable_folder


def test_a_folder_is_made_and_one_that_cannot_be_is_named(tmp_path):
    writable_folder(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"out='{place}': .*; choose a folder"):
            writable_folder(place)
