"""`python -m training [VERB] …`; without a verb: fit."""

from training.cli import main

if __name__ == "__main__":
    main()
