"""Without a GPU Triton interprets its kernels. It asks once, when it is first imported: so this comes first."""

import os
from pathlib import Path

HAS_GPU = Path("/dev/nvidia0").exists() or Path("/dev/nvidiactl").exists()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
