# SPDX-License-Identifier: Apache-2.0
"""What a budget costs in answers, measured through a real server."""
