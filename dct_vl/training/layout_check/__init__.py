"""`dct-vl layout-check`: the same losses in every parallel layout, or a refusal."""
