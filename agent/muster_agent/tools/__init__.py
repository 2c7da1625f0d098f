"""The tools that agents may use. Each bounds its own time and the size of what it returns."""
