# SPDX-License-Identifier: Apache-2.0
"""Built-in shapes: their parameters are those that the models' pages on the hub give."""

from __future__ import annotations

import pytest

from sglang_longflow.planner.geometry import (
    PlanError,
    geometry_from,
    load_geometry,
    parameter_count,
)
from sglang_longflow.settings.builtin_models import (
    builtin_config,
    builtin_name,
    builtin_names,
    refused_names,
)

#: Parameters of the safetensors files, as the hub counts them.
PARAMETERS = {
    "Qwen/Qwen3-4B-Thinking-2507": 4_022_468_096,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/QwQ-32B": 32_763_876_352,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "microsoft/phi-4": 14_659_507_200,
    # As Transformers counts them, without its layers of further tokens.
    "zai-org/GLM-4.5-Air": 106_852_245_504,
    "zai-org/GLM-4.5": 352_797_814_784,
    "zai-org/GLM-4.7": 352_797_814_784,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert parameter_count(load_geometry(name)) == PARAMETERS[name]


def test_every_name_is_taken_or_refused_as_it_should_be():
    for name in builtin_names():
        assert geometry_from(builtin_config(name), name, None).layers
        assert builtin_name(name.lower()) == builtin_name(name.split("/")[1]) == name
    for name in refused_names():
        with pytest.raises(PlanError, match=r"^config.json: model_type="):
            load_geometry(name)
