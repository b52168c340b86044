# SPDX-License-Identifier: Apache-2.0
"""`longflow eval`: right answers by policy and budget."""
