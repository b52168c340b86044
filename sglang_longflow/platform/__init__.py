# SPDX-License-Identifier: Apache-2.0
"""Where the server runs when there is no GPU."""
