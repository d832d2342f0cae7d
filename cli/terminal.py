"""The one door to the terminal: names and texts of others cannot steer it."""

import click

from ..core.files.escape import plain


def say(text: object = "", err: bool = False) -> None:
    """Print a text to stdout, or to stderr; control characters in it are replaced."""
    click.echo(plain(text), err=err)
