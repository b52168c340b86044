# SPDX-License-Identifier: Apache-2.0
"""`longflow demo`: the run, the default model, the tables."""
