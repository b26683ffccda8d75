"""``python -m data_prep``: every verb is registered here with one line."""

import typer

from data_prep.cli_blend import blend
from data_prep.cli_cambrian import cambrian
from data_prep.cli_prepare import prepare
from data_prep.cli_stats import preview, stats
from data_prep.cli_verify import verify
from data_prep.drawn.cli import draw

app = typer.Typer(
    help="Raw datasets to shards that Energon reads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("draw")(draw)
app.command("cambrian")(cambrian)
app.command("prepare")(prepare)
app.command("stats")(stats)
app.command("verify")(verify)
app.command("preview")(preview)
app.command("blend")(blend)
