"""`python -m limbeck`, also under `torchrun -m` and `accelerate launch -m`."""

from limbeck.cli import main

if __name__ == "__main__":
    main()
