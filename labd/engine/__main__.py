"""The driver's process: `python -m labd.engine`. A module of its own, so that Ray pickles the driver's functions by name."""

from labd.engine.driver import main

if __name__ == "__main__":
    main()
