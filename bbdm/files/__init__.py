"""Files of weights: our own formats, and other people's."""
