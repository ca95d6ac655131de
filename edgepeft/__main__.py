"""``python -m edgepeft`` is the command ``edgepeft``."""

from edgepeft.cli import main

if __name__ == "__main__":
    main()
