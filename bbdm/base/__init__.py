"""What every part of bbdm may use, and that uses none of them; nothing here imports torch when it is imported."""
