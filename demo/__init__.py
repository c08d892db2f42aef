"""The demo: a generated corpus, and the whole pipeline on it. Not part of the installed packages."""
