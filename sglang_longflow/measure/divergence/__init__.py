"""`longflow eval --task text:FILE`: KL divergence from full KV on texts."""
