"""How every command looks: options in sections, examples at the end of the help, an environment variable for each
option, and the nearest right name for a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from amqptasks.cli import user_options
from amqptasks.cli.common import did_you_mean

__all__ = ["Command", "Group", "Option", "json_option", "name_variables"]

ENVIRONMENT_PREFIX = "AMQPTASKS"

F = TypeVar("F", bound=Callable[..., Any])


class Option(click.Option):
    """An option that stands under a heading of its own in the help.

    Args:
        section: The heading.
    """

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose help shows its options by section, then examples.

    Args:
        examples: Whole command lines.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options and arguments, those included that the app adds."""
        return super().get_params(ctx) + user_options.added(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line. An option that nobody knows may be one that the app adds."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption:
            if isinstance(self, click.Group) or not user_options.extend(ctx):
                raise
            return super().parse_args(ctx, given)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, without the options that it does not know."""
        if not isinstance(self, click.Group):
            user_options.take(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each section under its heading."""
        if not isinstance(self, click.Group):
            user_options.extend_for_help(ctx)
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            # Arguments stand in the usage line and are told of in the text.
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for heading in sorted(sections, key="Options".__ne__):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, never broken, and which environment variables there are."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{' ' * formatter.current_indent}{line}\n")
        named = [each for each in self.params if isinstance(each, click.Option) and each.envvar]
        if named:
            formatter.write_paragraph()
            formatter.write_text(f"Every option is an environment variable too, such as {named[0].envvar}.")
        super().format_epilog(ctx, formatter)


class Group(Command, click.Group):
    """A group of commands that answers a wrong name with the nearest right one."""

    command_class = Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, as click does."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f"no command {name!r}{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def json_option() -> Callable[[F], F]:
    """Make ``--json``, the option of everything that reads."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def name_variables(command: click.Command, path: str = ENVIRONMENT_PREFIX) -> None:
    """Give every option of a command, and of those below it, its environment variable: AMQPTASKS_WORKER_QUEUES.

    The name is that of the option as it is typed, whatever the parameter behind it is called.
    """
    for parameter in command.params:
        if isinstance(parameter, click.Option) and "--version" not in parameter.opts:
            longest = max(parameter.opts, key=len)
            parameter.envvar = f"{path}_{longest.lstrip('-').replace('-', '_').upper()}"
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            name_variables(each, f"{path}_{name.replace('-', '_').replace('.', '_').upper()}")
