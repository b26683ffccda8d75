"""`dct-vl fit` on a disk that takes seconds; run by test_async_save.py.

python slow_disk.py SECONDS fit OVERRIDE...
"""

from __future__ import annotations

import sys
import time
from typing import Any

from dct_vl.compat import activate

activate()

from megatron.core.dist_checkpointing.strategies.filesystem_async import (  # noqa: E402
    FileSystemWriterAsync,
)

from dct_vl.cli import main  # noqa: E402

if __name__ == "__main__":
    seconds = float(sys.argv.pop(1))
    write = FileSystemWriterAsync.write_preloaded_data

    def write_slowly(*args: Any, **kwargs: Any) -> None:
        time.sleep(seconds)
        write(*args, **kwargs)

    FileSystemWriterAsync.write_preloaded_data = staticmethod(write_slowly)
    main()
