"""Names of commands and of values: messages suggest the one that was probably meant."""

from __future__ import annotations

from typing import Any

import click

from edgepeft_runtime.names import did_you_mean


class Group(click.Group):
    """Commands; an unknown one is refused with similar names."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or fail with a suggestion."""
        names = self.list_commands(ctx)
        if args[0] not in names and not ctx.resilient_parsing:
            hint = did_you_mean(args[0], names, f"see {ctx.command_path} --help.")
            ctx.fail(f"There is no command {args[0]!r}. {hint[:1].upper()}{hint[1:]}")
        return super().resolve_command(ctx, args)


class Choice(click.Choice[str]):
    """``click.Choice`` whose message suggests a similar name before it lists all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name, or fail with a suggestion."""
        if isinstance(value, str) and value not in self.choices:
            hint = did_you_mean(value, self.choices, "")
            names = ", ".join(map(str, self.choices))
            self.fail(f"{value!r} is not one of {names}.{' D' + hint[1:] if hint else ''}", param, ctx)
        return super().convert(value, param, ctx)
