"""`featurize run` beside its peers: speed, bad files, and what a kill costs."""
