"""Entry point of ``python -m data_prep``."""

if __name__ == "__main__":
    # workers import this module as well, and need none of the commands
    from data_prep.cli import app

    app(prog_name="python -m data_prep")
