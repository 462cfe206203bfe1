"""The command that makes a data set and runs everything on it."""

from __future__ import annotations

import click

from savimae.commands.options import PATH, SEED
from savimae.system.allocator import keep_memory


@click.command()
@click.option("--out", type=PATH, default="savimae-demo", show_default=True, metavar="DIR")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Default: the cores this process may use.")
@click.option(
    "--full", is_flag=True,
    help="Judge pretraining instead, with probes and fine-tuning: about half an hour.",
)  # fmt: skip
def demo(out: str, seed: int, workers: int | None, full: bool) -> int:
    """Make a small set of real videos and run the whole pipeline on it: about four minutes."""
    keep_memory()
    from savimae.demo.run import run_demo
    from savimae.demo.scores import run_full_demo
    from savimae.system.cores import available_cores

    return (run_full_demo if full else run_demo)(out, seed, workers or available_cores())
