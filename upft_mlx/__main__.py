"""`python -m upft_mlx` is `upft`. What keeps it from starting at all is said here, in words instead of a traceback.

Like upft_mlx.machine.requirements this needs nothing newer than Python 3.9 and nothing installed.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of the `upft` script."""
    from upft_mlx.machine import requirements

    if trouble := requirements.python_refusal():
        _stop(trouble)
    try:
        from upft_mlx.cli.main import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "upft_mlx":
            raise
        _stop(requirements.refusal() or requirements.import_refusal(error))
    cli()


def _stop(message: str) -> None:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
