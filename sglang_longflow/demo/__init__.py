"""`longflow demo`: the run, the default model, the tables."""
