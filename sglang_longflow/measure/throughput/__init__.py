# SPDX-License-Identifier: Apache-2.0
"""`longflow bench`: throughput and latency against the budget."""

STOCK = "stock"  # SGLang's own defaults
STOCK_SAME = "stock-same"  # with what a budget server sets
BASELINES = (STOCK, STOCK_SAME)
NONE = "none"  # no baseline
