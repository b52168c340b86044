# SPDX-License-Identifier: Apache-2.0
"""Server arguments that SGLang no longer has."""

from __future__ import annotations

import re

import pytest

from sglang_longflow.errors import ConfigError
from sglang_longflow.server import options
from sglang_longflow.server.yaml_file import yaml_arguments

pytestmark = pytest.mark.sglang  # its source is read


@pytest.fixture(scope="module")
def flags() -> set[str]:
    return {flag for option in options.server_options() for flag in option.flags}


def test_what_is_gone_is_gone_and_what_to_set_is_there(flags):
    for flag, fix in options._GONE.items():
        assert flag not in flags
        assert set(re.findall(r"--[a-z-]+", fix)) <= flags, flag


@pytest.mark.parametrize("key", ["cuda-graph-bs", "cuda_graph_bs"])
def test_a_yaml_file_is_told_too(tmp_path, key):
    file = tmp_path / "server.yaml"
    file.write_text(f"{key}: [1, 2]\n")
    with pytest.raises(ConfigError, match="no longer has it; set --cuda-graph-bs-decode"):
        yaml_arguments(file)
