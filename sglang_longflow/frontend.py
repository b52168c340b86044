# SPDX-License-Identifier: Apache-2.0
"""Budgets in SGLang frontend programs; see `sglang_longflow.client.frontend`."""

from sglang_longflow.client.frontend import *  # noqa: F403
from sglang_longflow.client.frontend import __all__  # noqa: F401
