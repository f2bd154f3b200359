"""``python -m featmap`` is the command ``featmap``."""

from featmap.cli.app import main

if __name__ == "__main__":
    main()
