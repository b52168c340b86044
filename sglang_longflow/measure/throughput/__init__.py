"""`longflow bench`: throughput and latency against the budget."""
