"""The demo: a corpus made by program, and the whole way over it. Not part of the installed packages."""
