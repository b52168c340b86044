"""The case builder beside these tests is importable, as `decode_case`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
