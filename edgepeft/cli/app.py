"""The table of commands, and the conversion of errors to messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from edgepeft import __version__
from edgepeft.cli.choice import Group
from edgepeft.cli.errors import Unexpected
from edgepeft.cli.exit_codes import INTERRUPTED
from edgepeft.cli.screen.line import end_line
from edgepeft.cli.screen.notices import notices_as_lines
from edgepeft.cli.screen.verbosity import with_options
from edgepeft.errors import SystemFailure
from edgepeft_runtime.errors import EdgepeftError, MissingExtra
from edgepeft_runtime.files.durable import hint_for

_COMMANDS = {
    "new": "Write a small project to begin with.",
    "doctor": "Show what would be trained, and which operators block it.",
    "methods": "List the methods and their settings.",
    "prepare": "Compile a model into a bundle.",
    "export-ort-training": "Add the artifacts of ONNX Runtime Training to a bundle.",
    "pick": "Choose the trainable elements by proxy data.",
    "inspect": "Show the contents of a bundle.",
    "profile": "Show where the time and memory of a training step go.",
    "train": "Train a bundle's adapter on data, or resume a run.",
    "report": "Show the losses of a run, and what was kept, as a page.",
    "evaluate": "Print loss and accuracy on labelled data.",
    "predict": "Run the model on data.",
    "generate": "Generate text with a causal language model.",
    "keys": "Create a fleet's key, register and revoke devices.",
    "publish": "Publish the next round of a fleet.",
    "serve": "Serve rounds to devices over HTTP, and accept their updates.",
    "join": "Fetch the newest round of a fleet, on the device.",
    "deliver": "Deliver an update to the host, on the device.",
    "pull": "Fetch and verify updates.",
    "status": "Show the rounds, devices and refusals of a fleet.",
    "rollback": "Publish an earlier round's adapter again.",
    "aggregate": "Aggregate many updates into one adapter.",
    "merge": "Merge an update into a model.",
}
"""Commands in the order of their use. Each is ``command`` in the module of its name, imported when it is called."""

_EXTRAS = {
    "onnxruntime": "device",
    "fsspec": "remote",
    "starlette": "serve",
    "uvicorn": "serve",
    "tokenizers": "text",
    "PIL": "images",
    "pyarrow": "tables",
    "dp_accounting": "dp",
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "peft", "transformers", "safetensors"), "host"),
}


class _Commands(Group):
    """Commands that are imported only when they run, so ``--help`` is fast and a device needs no host library."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (the signature is click's)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"edgepeft.cli.commands.{cmd_name.replace('-', '_')}").command
        return with_options(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def app() -> None:
    """Fine-tune a model on any device that runs stock ONNX Runtime, and send back only the adapter.

    \b
    on a workstation   edgepeft prepare MODEL --method lora --out BUNDLE
    on the device      edgepeft train BUNDLE --data DATA --state DIR --update UPDATE
    on a workstation   edgepeft merge BUNDLE UPDATE --to peft --out ADAPTER

    -q and -v may also follow a command's name. EDGEPEFT_DEBUG=1 shows where an error comes from.
    """


with_options(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        with notices_as_lines():
            code = app.main(
                args=None if arguments is None else list(arguments), prog_name="edgepeft", standalone_mode=False
            )
    except EdgepeftError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        return _fail(_missing_extra(error) or unexpected(error))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):  # click raises Abort while a command runs
        return INTERRUPTED
    except MemoryError:
        hint = "end other programs, use smaller batches (--batch-size), or prepare the bundle with --memory-budget."
        return _fail(SystemFailure("Memory is short.", context=None, hint=hint))
    except BrokenPipeError:  # the reader of the output has exited; keep Python from reporting it when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # no module has made it an error of its own
        return _fail(SystemFailure("The system reports an error.", context=str(error), hint=hint_for(error)))
    except Exception as error:  # of a library; whoever runs a command cannot read its traceback
        return INTERRUPTED if _was_interrupted(error) else _fail(unexpected(error))
    return code if isinstance(code, int) else 0


def _fail(error: EdgepeftError) -> int:
    if os.environ.get("EDGEPEFT_DEBUG") == "1":
        traceback.print_exc()
    end_line()
    click.echo(error.render(), err=True)
    return 1


def _was_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C caused an error: compiled modules raise an ``ImportError`` of it while they are imported."""
    cause = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt) or (cause is not None and _was_interrupted(cause))


def unexpected(error: Exception) -> EdgepeftError:
    """Return the error for an exception that nothing has expected, with the module that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    said = (str(error).strip().splitlines() or [""])[0]
    return Unexpected(
        f"A step of the command failed with {type(error).__name__}{where}.",
        context=said or None,
        hint="EDGEPEFT_DEBUG=1 shows the way there: please report it with the model's class and the command.",
    )


def _missing_extra(error: ModuleNotFoundError) -> EdgepeftError | None:
    """Return the error for a package of an extra; ``None`` if the import is a mistake of our own."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        return None
    return MissingExtra(
        f"This command needs the package {package}, which is not installed.",
        context=None,
        hint=f"pip install 'edgepeft[{extra}]'",
    )
