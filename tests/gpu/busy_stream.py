"""`dct-vl` with NeMo's stream for DDP kept busy for a while: VERB KEY=VALUE …

As on a device that several processes share: what DDP does with the weights happens late, unless it
happens on the stream of everything else.
"""

from __future__ import annotations

import sys
from typing import Any

from dct_vl.cli import main

#: clock cycles; about two seconds
BUSY = 4_000_000_000

if __name__ == "__main__":
    # not above: processes of the run import this file too
    from dct_vl.compat import activate

    activate()
    import torch
    from nemo.lightning.megatron_parallel import MegatronParallel

    init_ddp = MegatronParallel.init_ddp

    def busy(self: Any) -> None:
        """Called under NeMo's stream."""
        if torch.cuda.current_stream() == torch.cuda.default_stream():
            raise AssertionError("NeMo has no stream for DDP: ddp-stream of dct_vl.compat can go")
        print("DDP waits", flush=True)
        torch.cuda._sleep(BUSY)
        init_ddp(self)

    MegatronParallel.init_ddp = busy
    main(sys.argv[1:])
