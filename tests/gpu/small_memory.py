"""`dct-vl` in a process that gets few MiB of its device: MIB VERB KEY=VALUE …

A limit of torch's allocator, so that other processes on the device keep theirs.
"""

from __future__ import annotations

import sys

from dct_vl.cli import main

if __name__ == "__main__":
    # not above: processes of the run import this file too
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(int(sys.argv[1]) * 2**20 / total, 0)
    main(sys.argv[2:])
