"""Run the command line: `python -m excise`."""

from .cli.main import main


if __name__ == "__main__":
    main()
