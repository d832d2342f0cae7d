"""What a user can call: every public name with its signature, as it was agreed on last.

After a change that is meant: `python tests/test_public.py` writes the list anew.
"""

import inspect
from pathlib import Path

import excise


LIST = Path(__file__).with_name("public.txt")


def described(name: str) -> str:
    """Return a name with its parameters and their defaults, or what it is."""
    value = getattr(excise, name)
    if not callable(value):
        return f"{name}: {type(value).__name__}"
    try:
        signature = inspect.signature(value)
    except ValueError:  # of a base class in C
        return f"{name}(...)"
    short = [_short(one) for one in signature.parameters.values()]
    return f"{name}{inspect.Signature(short)}"


def _short(parameter: inspect.Parameter) -> inspect.Parameter:
    """Drop the type, and a default that is made anew or long."""
    made = "FACTORY" in type(parameter.default).__name__ or len(repr(parameter.default)) > 40
    default = ... if made else parameter.default
    return parameter.replace(annotation=inspect.Parameter.empty, default=default)


def listed() -> str:
    """Return all public names, a line each."""
    return "".join(f"{described(name)}\n" for name in excise.__all__)


def test_the_public_names_are_those_agreed_on():
    assert listed() == LIST.read_text(), f"if this is meant, run python {__file__}"


if __name__ == "__main__":
    LIST.write_text(listed())
