"""The commands as a whole: their help, their options, their environment variables. Nothing here is run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest

from amqptasks.cli.common import did_you_mean
from amqptasks.cli.main import cli
from amqptasks.settings import Conf
from amqptasks.settings_table import SETTINGS


def every(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            each = command.get_command(context, name)
            assert each is not None
            yield from every(each, (*path, name))


COMMANDS = {" ".join(("amqptasks", *path)): (path, command) for path, command in every()}
OPTIONS = {
    f"{name} {max(each.opts, key=len)}": (path, command, each)
    for name, (path, command) in COMMANDS.items()
    for each in command.params
    if isinstance(each, click.Option) and "--version" not in each.opts
}
#: Values that these options take; a flag takes "1", anything else "7".
VALUES = {
    "--args": "[]", "--kwargs": "{}", "--headers": "{}", "--argument": "x=1", "--workdir": ".", "--loglevel": "INFO",
    "--optimization": "fair", "--missed": "once",
}  # fmt: skip


def context_of(command: click.Command, path: tuple[str, ...], arguments: list[str]) -> click.Context:
    parent = click.Context(cli, info_name="amqptasks")
    return command.make_context(path[-1] if path else "amqptasks", arguments, parent=parent if path else None)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_and_shows_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path, command = COMMANDS[name]
    parent = click.Context(cli, info_name="amqptasks", terminal_width=80)
    text = command.get_help(click.Context(command, info_name=" ".join(path), parent=parent, terminal_width=80))
    assert max(map(len, text.splitlines())) <= 80, text
    assert not text.rstrip().endswith("...")
    if not isinstance(command, click.Group) or not path:
        assert "Examples:" in text
    # And no line of a list of commands is cut short
    assert "...\n" not in text.partition("Commands:")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_typed(name: str) -> None:
    path, command = COMMANDS[name]
    for line in getattr(command, "examples", ()):
        if any(sign in line for sign in "|>$"):
            continue
        program, *words = shlex.split(line)
        assert program == "amqptasks"
        root = cli.make_context("amqptasks", words)
        # Where click keeps the command's name, and kept it before 8.2.
        rest = [*(getattr(root, "_protected_args", None) or root.protected_args), *root.args]
        found, each = (), cli
        while isinstance(each, click.Group):
            each, rest = each.get_command(root, rest[0]), rest[1:]
            # A command may have a second, shorter name.
            found = (*found, each.name)
        assert found[: len(path)] == path
        each.make_context(found[-1], rest, parent=root)


def test_every_option_has_a_variable_of_its_own() -> None:
    variables = [option.envvar for _path, _command, option in OPTIONS.values()]
    assert all(isinstance(each, str) for each in variables)
    assert len(set(variables)) == len(variables)
    # And it is spelt as the option is typed
    for name, (path, _command, option) in OPTIONS.items():
        words = [*path, name.rpartition("--")[2]]
        assert option.envvar == "_".join(["AMQPTASKS", *words]).replace("-", "_").replace(".", "_").upper()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_variable_acts_as_its_option_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, command, option = OPTIONS[name]
    value = VALUES.get(name.rpartition(" ")[2], "1" if option.is_flag else "7")
    assert isinstance(option.envvar, str) and option.name is not None
    monkeypatch.setenv(option.envvar, value)
    arguments = ["word" for each in command.params if isinstance(each, click.Argument) and each.required]
    # A group is given a command, so that it does not answer with its help.
    context = context_of(command, path, ["worker"] if isinstance(command, click.Group) else arguments)
    assert context.get_parameter_source(option.name) is click.core.ParameterSource.ENVIRONMENT


@pytest.mark.parametrize("name", OPTIONS)
def test_a_variable_of_an_option_is_not_taken_for_a_slip_in_a_setting(name: str) -> None:
    _path, _command, option = OPTIONS[name]
    assert isinstance(option.envvar, str)
    if option.envvar.removeprefix("AMQPTASKS_").lower() not in SETTINGS:
        Conf().load_environment({option.envvar: "1"})


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("wroker", ["worker", "call"], " (did you mean 'worker'?)"),
        ("shop.ad", ["shop.add", "shop.sub"], " (did you mean 'shop.add'?)"),
        ("add", ["shop.orders.add"], " (did you mean 'shop.orders.add'?)"),
        ("nothing.like.it", ["shop.add"], ""),
        ("x", [], ""),
    ],
)
def test_the_nearest_name_is_offered(name: str, known: list[str], hint: str) -> None:
    assert did_you_mean(name, known) == hint
