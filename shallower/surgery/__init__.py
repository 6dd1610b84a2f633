"""Surgery: a pruned or trained checkpoint written file to file, and proven."""
