"""The command line: the group of all commands, and `main`, where errors become one line.

The commands are in `commands/`. Heavy imports (Numba, PyAV, torch) happen inside the commands that
need them, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys

import click

from savimae import __version__
from savimae.commands.data import frames, index, inspect, pack, patches, preprocess, saliency
from savimae.commands.demo import demo
from savimae.commands.judging import (
    attention,
    compare,
    evaluate,
    features,
    neighbors,
    plot,
    predict,
    probe,
    reconstruct,
    report,
    test,
)
from savimae.commands.options import both_spellings
from savimae.commands.slurm import slurm
from savimae.commands.study import study
from savimae.commands.training import convert, finetune, train
from savimae.system.cores import wait_briefly
from savimae.system.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    SavimaeError,
    UsageError,
    one_line,
    shown,
)


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": both_spellings,
        "max_content_width": 100,
    }
)
@click.version_option(__version__, prog_name="savimae")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Saliency-aware VideoMAE pretraining on CPU nodes and Slurm clusters.

    Start with `savimae demo`: it makes a few small videos and runs everything on them.
    """


for command in (
    preprocess, saliency, patches, pack, frames, index, inspect, train, finetune, predict, test,
    convert, reconstruct, attention, evaluate, features, probe, neighbors, study, plot,
    compare, report, slurm, demo,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Run the command line; an error is one line and an exit code, a traceback with --debug."""
    debug = "--debug" in sys.argv[1:]
    wait_briefly()
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = _fail("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except click.UsageError as error:
        code = _fail_usage(error)
    except KeyboardInterrupt:
        code = _fail("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except UsageError as error:
        if debug:
            raise
        code = _fail(str(error), EXIT_USAGE)
    except SavimaeError as error:
        if debug:
            raise
        code = _fail(str(error), EXIT_FAILURE)
    except OSError as error:
        if debug:
            raise
        names = [shown(os.fsdecode(name)) for name in (error.filename, error.filename2) if name]
        code = _fail(": ".join([*names[:1], one_line(error)]), EXIT_FAILURE)
    except Exception as error:
        if debug:
            raise
        code = _fail(
            f"a bug in savimae: {one_line(error)}; `savimae --debug …` shows where", EXIT_FAILURE
        )
    sys.exit(code or 0)


def _fail_usage(error: click.UsageError) -> int:
    """One line for a wrong option; the help for a command that was given nothing."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()
        return EXIT_USAGE
    command = error.ctx.command_path if error.ctx else "savimae"
    text = " ".join(error.format_message().split())
    return _fail(f"{text.rstrip('.')}; see `{command} --help`", EXIT_USAGE)


def _fail(text: str, code: int) -> int:
    click.echo(f"savimae: {text}", err=True)
    return code
