"""`muster bench`: how a way through Muster compares with going to the engine directly, in the same run."""
