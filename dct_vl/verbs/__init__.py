"""One module a verb of `dct-vl`; heavy imports happen when the verb runs."""
