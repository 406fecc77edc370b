"""Results of a data set: one engine that makes them, for commands, scores, intervals and clusters."""
