# SPDX-License-Identifier: Apache-2.0
"""`longflow eval --task text:FILE`: KL divergence from full KV on texts."""
