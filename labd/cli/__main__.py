"""`python -m labd.cli`."""

from labd.cli import main

if __name__ == "__main__":
    main()
