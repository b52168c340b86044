# SPDX-License-Identifier: Apache-2.0
"""What `longflow render` writes, target by target."""
