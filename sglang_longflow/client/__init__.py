# SPDX-License-Identifier: Apache-2.0
"""What asks a server: budgets in frontend programs, small HTTP requests."""
