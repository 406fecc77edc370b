"""Many machines, on Ray: translating large sets of pictures, and serving over HTTP."""
