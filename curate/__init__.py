"""Instructions from the captions of a store: outside LLMs write them, and rules and a judge verify them."""
