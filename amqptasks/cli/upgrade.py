"""``amqptasks upgrade``: rewrites a Celery project for amqptasks, shows what it would change, and asks first."""

from __future__ import annotations

import difflib
import io
import os
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, Globals, plural
from amqptasks.cli.elements import Group

__all__ = ["upgrade"]

#: Directories that are not the project's own.
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist"})
#: More is no source that somebody wrote.
MAX_BYTES = 5 * 1024 * 1024
#: Other files in which the command stands.
SCRIPTS = re.compile(r"(Procfile|Dockerfile|Makefile|.*\.(sh|service|ya?ml|ini|toml|cfg|conf))(\..*)?$")
COMMAND = re.compile(r"\bcelery\s+(?:-A|--app|worker|beat|multi|call|inspect|control|purge|events|flower|status)\b")


@dataclass(slots=True)
class File:
    """A file, as it is and as it will be."""

    path: Path
    encoding: str
    before: str
    after: str
    remarks: list[tuple[int, str]]

    @property
    def is_changed(self) -> bool:
        """Whether it is to be written."""
        return self.before != self.after


@click.group(
    cls=Group, short_help="Rewrite a Celery project for amqptasks.",
    examples=("amqptasks upgrade project . --dry-run", "amqptasks upgrade settings celeryconfig.py"),
)  # fmt: skip
def upgrade() -> None:
    """Rewrite a Celery project for amqptasks: imports, and names of settings.

    What would change is shown, as a patch is, and nothing is written without a question, --yes, or with --dry-run.
    """


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-f", "--yes", "is_agreed", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Only show what would change."),
        click.option("--no-backup", is_flag=True, help="Keep no copy of what was (FILE.orig)."),
        click.option("--compat", is_flag=True, help="The same as --django."),
        click.option("--django", is_flag=True, help="Write settings as CELERY_NAME, for namespace='CELERY'."),
    ):
        function = option(function)
    return click.pass_context(function)


@upgrade.command(
    "settings", short_help="Rewrite settings modules.",
    examples=("amqptasks upgrade settings celeryconfig.py", "amqptasks upgrade settings --django proj/settings.py -f"),
)  # fmt: skip
@click.argument("filenames", nargs=-1, required=True, metavar="FILENAME...")
@_options
def settings_(
    ctx: click.Context, /, filenames: Sequence[str], django: bool, compat: bool, no_backup: bool, dry_run: bool,
    is_agreed: bool,
) -> None:  # fmt: skip
    """Rewrite settings modules: old names to today's, and their imports.

    Settings that are not there, do nothing, or mean something else are named with their lines. A settings module of
    Django's is known by its INSTALLED_APPS.
    """
    files = [_read(Path(name), is_settings=True, is_django=django or compat) for name in filenames]
    _finish(ctx, [each for each in files if each], files.count(None), dry_run, is_agreed, no_backup)


@upgrade.command(
    "project", short_help="Rewrite the imports and settings of a project.",
    examples=("amqptasks upgrade project . --dry-run", "amqptasks upgrade project src/shop -f"),
)  # fmt: skip
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@_options
def project(
    ctx: click.Context, /, paths: Sequence[str], django: bool, compat: bool, no_backup: bool, dry_run: bool,
    is_agreed: bool,
) -> None:  # fmt: skip
    """Rewrite every Python file of a directory: imports from celery and kombu, settings modules, app.conf.

    Names that have no counterpart are left, and named with their lines; so are scripts that call the command celery.
    Hidden directories and virtual environments are left out.
    """
    found = [each for name in paths for each in _sources(Path(name))]
    files = [_read(path, is_settings=None, is_django=django or compat) for path in found]
    _finish(ctx, [each for each in files if each], files.count(None), dry_run, is_agreed, no_backup)
    for path, line, text in _calls(paths):
        click.echo(f"{path}:{line}: calls the command celery; the new one is amqptasks: {text}", err=True)


# -- reading


def _sources(path: Path) -> Iterator[Path]:
    """Return the Python files of a directory, in order; or the file itself."""
    if not path.exists():
        raise CliError(f"there is no file or directory {str(path)!r}")
    if path.is_file():
        yield path
        return
    yield from (each for each in _files(path) if each.suffix == ".py")


def _files(top: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(top):
        names[:] = sorted(
            each
            for each in names
            if not each.startswith(".") and each not in SKIPPED and not (Path(directory) / each / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            yield Path(directory) / name


def _calls(paths: Sequence[str]) -> Iterator[tuple[Path, int, str]]:
    """Return the lines of scripts that call the command of Celery."""
    for top in paths:
        if not Path(top).is_dir():
            continue
        for path in _files(Path(top)):
            if not SCRIPTS.fullmatch(path.name) or path.stat().st_size > MAX_BYTES:
                continue
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            yield from ((path, number, line.strip()) for number, line in enumerate(lines, 1) if COMMAND.search(line))


def _read(path: Path, *, is_settings: bool | None, is_django: bool) -> File | None:
    """Read a file and rewrite its text; None, and a line about it, if it is no Python."""
    from amqptasks.cli import rewriting_settings
    from amqptasks.cli.rewriting import Source, imports

    if path.is_dir():
        raise CliError(f"{str(path)!r} is a directory: amqptasks upgrade project {path}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CliError(f"cannot read {str(path)!r}: {error.strerror}") from error
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        encoding, _lines = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        source = Source(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        CliError(f"{path}{line}: left alone, for it cannot be read: {why}").show()
        return None
    imports(source)
    if is_settings is None:
        is_settings = rewriting_settings.is_settings(source, path.name)
    if is_settings:
        namespaced = is_django or rewriting_settings.is_django(source)
        rewriting_settings.settings(source, namespace=rewriting_settings.NAMESPACE if namespaced else "")
    rewriting_settings.conf_uses(source)
    remarks = [(each.line, each.text) for each in sorted(source.remarks)]
    return File(path, encoding, text, source.rewritten(), remarks)


# -- showing and writing


def _finish(
    ctx: click.Context, files: Sequence[File], unread: int, dry_run: bool, is_agreed: bool, no_backup: bool
) -> None:  # fmt: skip
    """Show what would change, ask, and write it."""
    obj: Globals = ctx.obj
    changed = [each for each in files if each.is_changed]
    for file in changed:
        _show(file)
    for file in files:
        for line, text in file.remarks:
            click.echo(f"{file.path}:{line}: {text}", err=True)
    if not changed:
        obj.say("Does not seem to require any changes :-)")
    elif dry_run:
        obj.say(f"{plural(len(changed), 'file')} would be changed.")
    else:
        if not is_agreed:
            click.confirm(f"Write {plural(len(changed), 'file')}?", abort=True)
        for file in changed:
            _write(file, no_backup)
        kept = "" if no_backup else "; what was is in FILE.orig"
        obj.say(f"{plural(len(changed), 'file')} changed{kept}.")
    if unread:
        ctx.exit(EXIT_FAILED)


def _show(file: File) -> None:
    colors = {"+": "green", "-": "red", "@": "cyan"}
    lines = difflib.unified_diff(
        file.before.splitlines(), file.after.splitlines(), f"{file.path}", f"{file.path}", lineterm="", n=2
    )
    for number, line in enumerate(lines):
        click.echo(click.style(line, bold=True) if number < 2 else click.style(line, fg=colors.get(line[:1])))


def _write(file: File, no_backup: bool) -> None:
    """Write a file in one step: who ends the program in between finds the old one or the new one, whole."""
    target = file.path.resolve()
    fresh = target.with_name(f".{target.name}.new")
    try:
        mode = target.stat().st_mode & 0o777
        if not no_backup:
            number, backup = 1, target.with_name(f"{target.name}.orig")
            while backup.exists():
                number += 1
                backup = target.with_name(f"{target.name}.orig{number}")
            _put(backup, file.before.encode(file.encoding), mode)
        _put(fresh, file.after.encode(file.encoding), mode)
        fresh.replace(target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise CliError(f"cannot write {str(file.path)!r}: {error.strerror}", EXIT_FAILED) from error


def _put(path: Path, data: bytes, mode: int) -> None:
    """Write a file that nobody else may read before it is what they may."""
    path.touch(mode=0o600)
    path.write_bytes(data)
    path.chmod(mode)
