"""Text of others on its way out: to a terminal, and to Markdown. HTML has `viz.text.escape`."""

import re


_UNFIT = re.compile(
    "[^\t\n\r\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    "|[\u202a-\u202e\u2066-\u2069]"
)
"""Control characters but tab and ends of lines, halves of characters, what reorders text."""

UNFIT = "\ufffd"
"""What stands in their place."""


def plain(text: object) -> str:
    r"""Return text that cannot steer a terminal, reorder its surroundings or break an encoding.

    >>> plain("a\x1b[2Jb")
    'a�[2Jb'
    """
    return _UNFIT.sub(UNFIT, str(text)).replace("\r\n", "\n").replace("\r", UNFIT)


def one_line(text: object, most: int | None = None) -> str:
    """Return the same on one line, of so many characters at most: the middle goes."""
    line = " ".join(plain(text).split())
    if most is None or len(line) <= most:
        return line
    return f"{line[: most // 2]} ... {line[-most // 3 :]}"


def markdown(text: object) -> str:
    r"""Return text for one line of Markdown, in which it starts no cell, tag, link or line.

    >>> markdown("a|b <img src=x> ![](http://x)")
    'a\\|b \\<img src=x> ![\\](http://x)'
    """
    line = re.sub(r"[\\|<`]", r"\\\g<0>", one_line(text))
    return re.sub(r"\](?=[(\[:])", r"\\]", line)
