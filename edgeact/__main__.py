"""`python -m edgeact` and `torchrun -m edgeact`: the command line."""

from edgeact.cli import main

if __name__ == "__main__":
    main()
