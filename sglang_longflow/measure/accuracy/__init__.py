"""`longflow eval`: right answers by policy and budget."""
