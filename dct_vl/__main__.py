"""`python -m dct_vl VERB …`, the same as `dct-vl VERB …`."""

from dct_vl.cli import main

if __name__ == "__main__":
    main()
