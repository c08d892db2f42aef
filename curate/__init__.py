"""Ask outside LLMs: one client of any OpenAI-style server, and the ledger of what was asked and what it cost."""
