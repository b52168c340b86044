# SPDX-License-Identifier: Apache-2.0
"""``python -m sglang_longflow.cli``: the same as ``longflow``."""

from sglang_longflow.cli.main import main

raise SystemExit(main())
