"""Files of other programs: one is recognised by its entries, and what it leaves out comes from arguments."""
