"""`python -m ckptmesh`: the command line."""

from ckptmesh.cli import main

if __name__ == "__main__":
    main()
