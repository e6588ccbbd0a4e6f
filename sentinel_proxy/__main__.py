"""`python -m sentinel_proxy`."""

from sentinel_proxy.cli import main

if __name__ == "__main__":
    main()
