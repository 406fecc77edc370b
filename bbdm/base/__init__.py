"""What all of bbdm may use. Its modules import nothing else of bbdm, and no torch when they are imported."""
