# SPDX-License-Identifier: Apache-2.0
"""The tables that scripts/results_table.py writes, by kind of measurement."""
