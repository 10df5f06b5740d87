"""Worker processes as a server starts them: each opens the model itself, and what they share is measured."""
