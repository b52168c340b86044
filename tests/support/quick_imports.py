# SPDX-License-Identifier: Apache-2.0
"""Imports of a process that others are forked from: importing this module does them.

The garbage collector would walk, again and again, what imports leave; it is off meanwhile, and
what they left is out of its sight afterwards (`gc.freeze`), in the forks too.
"""

from __future__ import annotations

import gc

gc.disable()
import sglang.srt.managers.detokenizer_manager  # noqa: E402
import sglang.srt.managers.scheduler  # noqa: E402
import sglang.srt.models.registry  # noqa: E402, F401

gc.freeze()
gc.enable()
