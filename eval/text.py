"""General text that is on every machine: Python's own language reference."""


def builtin_text() -> str:
    """Return some 65,000 words of technical English, from `pydoc_data.topics`.

    The text differs a little between Python versions, so compare numbers of one version only.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
