"""`python -m upft_mlx` is `upft`."""

from upft_mlx.cli import main

main()
