"""`python -m loclin`."""

from loclin.cli import main

if __name__ == "__main__":
    main()
