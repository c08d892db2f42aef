"""Care of a store: take it elsewhere, bring in what was made elsewhere, merge, clear up, describe."""
