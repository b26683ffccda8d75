"""Entry point of `python -m dct_tokenizer`."""

import sys

from dct_tokenizer.cli import app
from dct_tokenizer.errors import TokenizerConfigError
from dct_tokenizer.plan import PlanError


def main() -> None:
    """Run the command line; a wrong name or size is one line and exit status 2."""
    try:
        app(prog_name="python -m dct_tokenizer")
    except (TokenizerConfigError, PlanError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
