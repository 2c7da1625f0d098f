"""What fetching says to the model when there is no page to show."""

from muster_agent.tools.complaints import ToolComplaint


class AddressSyntaxError(ToolComplaint):
    """What the model wrote is no web address; the text says what one looks like."""


class RefusedError(ToolComplaint):
    """The address may not be fetched. Every reason reads the same, so that a refusal maps no network.

    Args:
        reason: For the operator's log: a constant text without an address.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__("This address may not be fetched.")


class PageError(ToolComplaint):
    """The address may be fetched, but no readable page came of it."""


def unreachable() -> PageError:
    """The name is unknown, the connection or its certificate failed, the answer broke off or took too long."""
    return PageError("The page could not be fetched.")
