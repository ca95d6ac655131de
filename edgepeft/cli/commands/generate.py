"""``edgepeft generate``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgepeft.cli.options import adapter_of, bundle_argument, template_option
from edgepeft.cli.paths import PATH
from edgepeft.cli.screen.output import json_option


@click.command("generate")
@bundle_argument
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    required=True,
    multiple=True,
    help="Prompt. Repeat the option for more prompts.",
)
@click.option("--adapter", type=PATH, help="Update or adapter.safetensors; answers are shown with it and without.")
@click.option("--no-adapter", is_flag=True, help="Generate only without an adapter, from the bundle as prepared.")
@template_option
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens of an answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(0.0),
    default=0.0,
    show_default=True,
    help="Temperature of sampling; 0 chooses the likeliest token.",
)
@click.option("--top-k", type=click.IntRange(1), help="Sample from this many likeliest tokens.  [default: all]")
@click.option(
    "--top-p",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Sample from the likeliest tokens with this total probability.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the sampling.")
@click.option("--threads", type=click.IntRange(1), help="Threads of onnxruntime.  [default: all cores]")
@json_option
def command(
    bundle: Path,
    prompts: tuple[str, ...],
    adapter: Path | None,
    no_adapter: bool,
    template: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Print the answers of BUNDLE's causal language model to prompts, without and with an adapter.

    "Without" is the bundle as prepared, which shows what the adapter changes.
    """
    from edgepeft.data.conversations.prompts import Prompter
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.train.trainer import Trainer

    opened = Bundle.open(bundle)
    prompter = Prompter(opened, template)
    ids = [prompter.prompt(prompt) for prompt in prompts]
    chosen = None if no_adapter else adapter_of(adapter, opened)
    wanted = {"without": None} if chosen is None else {"without": None, "with": chosen}
    with Trainer.open(opened, threads=threads) as trainer:
        answers = {
            name: trainer.generate(
                ids,
                max_new_tokens=max_new_tokens,
                adapter=values,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
            for name, values in wanted.items()
        }
    for row, prompt in enumerate(prompts):
        texts = {name: prompter.decoded(tokens[row]) for name, tokens in answers.items()}
        click.echo(json.dumps({"prompt": prompt, **texts}, ensure_ascii=False) if as_json else _shown(prompt, texts))


def _shown(prompt: str, texts: dict[str, str]) -> str:
    width = max(map(len, texts)) + len(" the adapter")
    answers = [f"  {f'{name} the adapter':{width}}  {text.strip()}" for name, text in texts.items()]
    return "\n".join([prompt, *answers])
