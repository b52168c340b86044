# SPDX-License-Identifier: Apache-2.0
"""How many bytes a model's weights take, from the best that is known of its checkpoint.

Safetensors files that are here tell it exactly. Else their index, from Hugging Face's cache or from
its hub, or the header of a single file; else the geometry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sglang_longflow.planner.geometry import (
    DTYPE_BYTES,
    ModelGeometry,
    PlanError,
    parameter_count,
)
from sglang_longflow.settings import model_source
from sglang_longflow.settings.files import MOST_JSON_BYTES, parse_json, read_json
from sglang_longflow.settings.model_source import Missing, Why

_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
#: The header of a single file is usually shorter; a longer one is asked for again.
_HEADER_BYTES = 256 << 10
_MOST_HEADER_BYTES = 32 << 20


def weights_of(geom: ModelGeometry, dtype: str = "bfloat16", *, hub: bool) -> tuple[int, str]:
    """Bytes of the weights on all GPUs together, and where the number is from.

    Float tensors count at ``dtype`` unless the checkpoint is quantized; a stored copy of a tied
    output matrix does not count, as SGLang does not load it.

    Parameters
    ----------
    geom : ModelGeometry
    dtype : str
        ``bfloat16``, ``float16`` or ``float32``.
    hub : bool
        Whether the hub may be asked for the index of a model that was found by name.

    Raises
    ------
    PlanError
        The geometry alone does not tell (quantized or multimodal) and there is nothing else, or
        files that are here cannot be read.
    """
    stored = checkpoint_bytes(geom, dtype)
    if stored is not None:
        return stored, "safetensors files"
    known = _cached_index(geom, dtype)
    if known is not None:
        return known, "safetensors index in the cache"
    why = ""
    if hub and geom.named:
        asked = model_source.ask_hub(geom.name, lambda: _ask(geom, dtype))
        if not isinstance(asked, Missing):
            return asked
        why = f" ({asked})"
    if geom.opaque_field:
        raise PlanError(
            f"config.json field {geom.opaque_field}: the geometry alone does not give the weights "
            f"of {geom.name}, and there are no safetensors files or index of it{why}; "
            "give --weights-gb"
        )
    return parameter_count(geom) * DTYPE_BYTES[dtype], "config.json geometry"


def weights_bytes(geom: ModelGeometry, dtype: str = "bfloat16") -> int:
    """Bytes of the weights on all GPUs together, as `weights_of` knows them without the hub."""
    return weights_of(geom, dtype, hub=False)[0]


def checkpoint_bytes(geom: ModelGeometry, dtype: str = "bfloat16") -> int | None:
    """Bytes the folder's safetensors files take once loaded, on all GPUs; None without files."""
    if geom.folder is None:
        return None
    folder = Path(geom.folder)
    index = folder / _INDEX
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    try:
        if index.is_file():
            names = read_json(index)["weight_map"].values()
            files = [folder / name for name in sorted(set(names))]
        if not files or not all(file.is_file() for file in files):
            return None
        return sum(_file_bytes(file, geom, dtype) for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise PlanError(
            f"the safetensors files in {folder} are not readable (git-lfs pointers?): {err}; "
            "give --weights-gb"
        ) from err


def _file_bytes(file: Path, geom: ModelGeometry, dtype: str) -> int:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(file.stat().st_size - 8, MOST_JSON_BYTES):
            raise ValueError(f"{file.name} has no safetensors header")
        return _tensors_bytes(parse_json(stream.read(length)), geom, dtype)


def _tensors_bytes(header: dict[str, Any], geom: ModelGeometry, dtype: str) -> int:
    total = 0
    for name, tensor in header.items():
        if name == "__metadata__" or (geom.tied and name.endswith("lm_head.weight")):
            continue
        begin, end = tensor["data_offsets"]
        stored = _FLOAT_BYTES.get(tensor["dtype"])
        if stored is None or geom.opaque_field == "quantization_config":
            total += end - begin
        else:
            total += (end - begin) // stored * DTYPE_BYTES[dtype]
    return total


def _index_bytes(index: dict[str, Any], geom: ModelGeometry, dtype: str) -> int | None:
    """What an index's total comes to once loaded; None if it names none.

    An index has no dtypes: those of a checkpoint that is not quantized are taken to be the
    config's.
    """
    try:
        total = int(index["metadata"]["total_size"])
        names = tuple(index.get("weight_map") or ())
    except (KeyError, TypeError, ValueError):
        return None
    if total <= 0:
        return None
    stored = DTYPE_BYTES.get(geom.stored_dtype or dtype, 0)
    if geom.tied and stored and any(name.endswith("lm_head.weight") for name in names):
        total -= geom.vocab * geom.hidden * stored
    if geom.opaque_field == "quantization_config" or not stored:
        return total
    return total * DTYPE_BYTES[dtype] // stored


def _cached_index(geom: ModelGeometry, dtype: str) -> int | None:
    if geom.folder is None or not geom.named:
        return None
    try:
        index = read_json(Path(geom.folder) / _INDEX)
    except (OSError, ValueError):
        return None
    return _index_bytes(index, geom, dtype) if isinstance(index, dict) else None


def _ask(geom: ModelGeometry, dtype: str) -> tuple[int, str] | Missing:
    """The hub's index, or the header of the one file of a model that has no index."""
    from huggingface_hub.errors import EntryNotFoundError

    unusable = Missing(geom.name, Why.UNUSABLE, model_source.endpoint())
    try:
        index = parse_json(model_source.hub_bytes(geom.name, _INDEX, geom.revision))
    except EntryNotFoundError:
        header = _hub_header(geom)
        return _tensors_bytes(header, geom, dtype), "safetensors header on the hub"
    except ValueError:
        return unusable
    found = _index_bytes(index, geom, dtype) if isinstance(index, dict) else None
    return unusable if found is None else (found, "safetensors index on the hub")


def _hub_header(geom: ModelGeometry) -> dict[str, Any]:
    data = model_source.hub_bytes(geom.name, _SINGLE, geom.revision, _HEADER_BYTES)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > _MOST_HEADER_BYTES:
        raise ValueError(f"{_SINGLE} has no safetensors header")
    if len(data) < length + 8:
        data = model_source.hub_bytes(geom.name, _SINGLE, geom.revision, length + 8)
    found: dict[str, Any] = parse_json(data[8 : length + 8])
    return found
