"""``edgepeft aggregate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepeft.aggregation.errors import StackCannotBeEvaluated, TargetAmongUpdates, WorseThanBefore
from edgepeft.aggregation.settings import EXAMPLES_CAP, RULES, WEIGHTS
from edgepeft.cli.choice import Choice
from edgepeft.cli.options import column_options, metric_option
from edgepeft.cli.paths import OUTPUT, PATH
from edgepeft.cli.screen.output import json_option
from edgepeft.cli.screen.verbosity import say
from edgepeft.errors import WrongSuffix
from edgepeft_runtime.errors import NoSuchFolder
from edgepeft_runtime.figures import number, percent, size
from edgepeft_runtime.files.durable import check_output

if TYPE_CHECKING:
    from edgepeft.aggregation import Acceptance, Aggregate, AggregateReport, Privacy
    from edgepeft_runtime.bundle.bundle import Bundle

SUFFIX = ".safetensors"


def _others(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> tuple[tuple[str, str | None], ...]:
    """Parse ``BUNDLE`` or ``BUNDLE=ADAPTER``."""
    pairs = (text.partition("=") for text in given)
    return tuple((bundle, adapter or None) for bundle, _, adapter in pairs)


@click.command("aggregate")
@click.argument("directory", type=PATH, metavar="[DIR]", required=False)
@click.option(
    "--workspace",
    type=PATH,
    metavar="WORKSPACE",
    help="Workspace of the host, instead of DIR; its latest round is aggregated.",
)
@click.option("--bundle", type=PATH, required=True, help="Bundle that the devices trained.")
@click.option(
    "--out", type=OUTPUT, required=True, help="File to write the adapter to; the report is written next to it as .json."
)
@click.option("--adapter", type=PATH, help="Adapter of an earlier round that the devices started from.")
@click.option(
    "--with-bundle",
    "others",
    multiple=True,
    metavar="BUNDLE[=ADAPTER]",
    callback=_others,
    help="Bundle of the same base with another rank whose updates are in DIR too; for svd and stack.",
)
@click.option(
    "--rule",
    type=Choice(RULES),
    default=RULES[0],
    show_default=True,
    help="Average of LoRA pairs: fedavg A and B separately, ffa B alone, svd the nearest to the mean product, stack "
    "the exact mean, for merge only.",
)
@click.option(
    "--weights",
    type=Choice(WEIGHTS),
    default=WEIGHTS[0],
    show_default=True,
    help="Weight of a device: equal for all, or the number of examples it reports.",
)
@click.option(
    "--examples-cap",
    type=click.IntRange(1),
    default=EXAMPLES_CAP,
    show_default=True,
    help="Largest number of examples that counts.",
)
@click.option(
    "--robust",
    metavar="median|trimmed-mean=FRACTION",
    help="Robust statistic instead of the mean, for five devices or more.",
)
@click.option("--clip", type=float, metavar="NORM", help="Largest L2 norm of a device's change.")
@click.option("--dp-noise", type=float, metavar="MULTIPLE", help="Noise on the mean, in clipping norms (with --clip).")
@click.option("--dp-delta", type=float, default=1e-5, show_default=True, help="Delta that epsilon is reported for.")
@click.option(
    "--dp-rounds", type=click.IntRange(1), default=1, show_default=True, help="Rounds to account for together."
)
@click.option(
    "--dp-sampling",
    type=float,
    default=1.0,
    show_default=True,
    help="Probability that an update counts, drawn in secret.",
)
@click.option("--data", type=PATH, help="Held-out data to evaluate the round on, before and after.")
@column_options
@metric_option("Metric on --data that decides instead of the loss: as in `edgepeft evaluate`.")
@click.option(
    "--acceptance-check", is_flag=True, help="Write only the report if the loss, or --metric, on --data is worse."
)
@json_option
def command(
    directory: Path | None,
    workspace: Path | None,
    bundle: Path,
    out: Path,
    adapter: Path | None,
    robust: str | None,
    data: Path | None,
    text_column: tuple[str, ...],
    label_column: str,
    metric: str | None,
    acceptance_check: bool,
    dp_noise: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Aggregate the updates that pull has collected in DIR, or a fleet's newest round, into one adapter.

    The order of the files and duplicates do not matter. Damaged, foreign and stale updates are listed, and do not
    count. The adapter is an update of the bundle: merge accepts it, and train --adapter starts from it.
    """
    from edgepeft.aggregation import aggregate
    from edgepeft_runtime.bundle.bundle import Bundle

    if acceptance_check and data is None:
        raise click.UsageError("--acceptance-check needs --data.")
    if (directory is None) == (workspace is None) or (workspace is not None and adapter is not None):
        raise click.UsageError(
            "Give either DIR, perhaps with --adapter, or --workspace, which knows the round's adapter."
        )
    opened, privacy = Bundle.open(bundle), _privacy(settings, dp_noise)
    _check_out(out, directory)
    if workspace is not None:
        updates, adapter, terms = _round(workspace, alike=robust is not None or privacy is not None)
        settings = terms | {name: value for name, value in settings.items() if value is not None}
    elif directory is not None:
        paths = [path for path in sorted(directory.glob(f"*{SUFFIX}")) if not path.name.startswith(".")]
        updates = dict.fromkeys(paths, 1.0)
    combined = aggregate(opened, updates, adapter=adapter, robust=robust, privacy=privacy, **settings)
    if not as_json:
        _print(combined.report)
    verdict = None if data is None else _verdict(opened, combined, adapter, data, (text_column, label_column), metric)
    _save(combined, out, verdict, acceptance_check)
    if as_json:
        click.echo(out.with_suffix(".json").read_text("utf-8"), nl=False)
        return
    if verdict is not None:
        say(
            f"held out: loss {number(verdict.before.loss)} -> {number(verdict.after.loss)}, accuracy "
            f"{percent(verdict.before.accuracy)} -> {percent(verdict.after.accuracy)}"
        )
        for name, score in verdict.after.metrics.items():
            say(f"held out: {name} {number(verdict.before.metrics[name].value)} -> {number(score.value)}")
    say(f"{out}: {size(out.stat().st_size)}; report: {out.with_suffix('.json')}")


def _round(workspace: Path, *, alike: bool) -> tuple[Mapping[Path, float], Path, dict[str, Any]]:
    """Return updates, adapter and settings of the fleet's newest round. If all count alike, late ones do not count."""
    from edgepeft.sync import closing

    newest = closing(workspace, alike=alike)
    late = sum(factor < 1 for factor in newest.updates.values())
    details = f", {late} of earlier rounds, with less weight" if late else ""
    details += f", {newest.left_out} of earlier rounds left out" if newest.left_out else ""
    say(f"round {newest.round}: {len(newest.updates)} devices{details}", err=True)
    return newest.updates, newest.adapter, {"clip": newest.clip, "earlier": newest.earlier}


def _check_out(out: Path, directory: Path | None) -> None:
    if directory is not None and not directory.is_dir():
        raise NoSuchFolder(f"There is no folder {directory}.", context=None, hint="pull updates into one first.")
    if out.suffix != SUFFIX:
        raise WrongSuffix(f"The adapter cannot be written to {out}.", context=None, hint=f"end its name in {SUFFIX}.")
    for path in (out, out.with_suffix(".json")):
        check_output(path)
    if directory is not None and out.resolve().parent == directory.resolve():
        raise TargetAmongUpdates(
            f"{out} would be among the updates, and count as one next time.",
            context=None,
            hint="choose another folder for --out.",
        )


def _privacy(settings: dict[str, Any], noise: float | None) -> Privacy | None:
    from edgepeft.aggregation import Privacy

    given = {name.removeprefix("dp_"): settings.pop(name) for name in ("dp_delta", "dp_rounds", "dp_sampling")}
    return None if noise is None else Privacy(noise, **given)


def _verdict(
    bundle: Bundle,
    combined: Aggregate,
    adapter: Path | None,
    data: Path,
    names: tuple[tuple[str, ...], str],
    metric: str | None,
) -> Acceptance:
    from edgepeft.aggregation import check_acceptance
    from edgepeft.data import load

    if combined.is_stack:
        raise StackCannotBeEvaluated(
            "A stack does not fit the bundle's graphs.",
            context=None,
            hint="merge it to onnx and evaluate that, or choose another rule.",
        )
    held_out = load(data, bundle, text_column=names[0], label_column=names[1])
    return check_acceptance(bundle, combined.parameters, held_out, adapter, metric=metric)


def _save(combined: Aggregate, out: Path, verdict: Acceptance | None, acceptance_check: bool) -> None:
    from edgepeft.aggregation.report import write_report

    more = {} if verdict is None else {"held_out": asdict(verdict)}
    if verdict is not None and acceptance_check and not verdict.accepted:
        write_report(out.with_suffix(".json"), combined.report.to_json(more))
        name = next(iter(verdict.after.metrics), "loss")
        raise WorseThanBefore(
            f"The round is worse on held-out data by its {name}, so it was not written.",
            context=f"{name} {verdict.before.deciding.value:.6g} before, {verdict.after.deciding.value:.6g} after",
            hint=f"check the norms in {out.with_suffix('.json')}; clip, or choose a robust statistic.",
        )
    combined.save(out, **more)


def _print(report: AggregateReport) -> None:
    for refused in report.refused:
        click.echo(f"refused {refused}", err=True)
    clipped = sum(update.clipped < 1 for update in report.updates)
    counts = (len(report.updates), "updates"), (report.duplicates, "duplicates"), (len(report.refused), "refused")
    say(", ".join(f"{count} {what}" for count, what in (*counts, (clipped, "clipped"))))
    norms = sorted(update.norm for update in report.updates)
    say(f"norms of the changes: {norms[0]:.3g} to {norms[-1]:.3g}, median {norms[len(norms) // 2]:.3g}")
    if report.cut is not None:
        say(f"{report.robust}: {report.cut} of {len(norms)} values left out at either end")
        if len(norms) < 5:
            say("with fewer than five devices a robust statistic guarantees no protection", err=True)
    if report.merge_error is not None:
        worst = max(report.merge_error.pairs.values())
        say(f"merge error: {report.merge_error.relative:.2%} of the exact change, at most {worst:.2%} in a layer")
    for name, union in report.sparse.items():
        say(f"{name}: {union.kept} of {union.indices} indices kept, {percent(union.fraction)} of the squared change")
    if report.privacy is not None:
        spent = report.privacy
        sampled = "" if spent.sampling == 1.0 else f", each update counting with probability {spent.sampling:g}"
        say(f"privacy: epsilon {spent.epsilon:.3g} at delta {spent.delta:g} over {spent.rounds} rounds{sampled}")
