"""The tables that scripts/results_table.py writes, by kind of measurement."""
