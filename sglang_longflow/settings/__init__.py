# SPDX-License-Identifier: Apache-2.0
"""Flags, the typed configuration, and what is refused with a budget."""
