"""One thing varied at a time: which runs there are, which are missing, and the paper's tables and figures."""
