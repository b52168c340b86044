# SPDX-License-Identifier: Apache-2.0
"""A request's way, stage by stage, in plain Python and torch: no SGLang here."""
