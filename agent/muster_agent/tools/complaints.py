"""What a tool says to the model when it cannot do what was asked."""


class ToolComplaint(Exception):  # noqa: N818 - it is told to the model, not raised at a person
    """The model asked for something that cannot be done; the text is for it to read and mend."""


class ToolkitError(Exception):
    """A toolkit cannot be opened; the message says what to do."""
