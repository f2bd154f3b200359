"""``python -m featmap`` is the command ``featmap``."""

from importlib import import_module

if __name__ == "__main__":
    import_module("featmap.cli.app").main()  # by name, as the console script names it
