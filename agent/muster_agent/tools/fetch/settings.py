"""What the operator decides about fetching pages."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from muster_agent.tools.fetch.hosts import allow_list


def _readable(entries: list[str]) -> list[str]:
    allow_list(entries)
    return entries


class FetchSettings(BaseModel):
    """Which pages may be fetched, and how much of them; without an allow-list there is no fetching."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allow: Annotated[list[str], AfterValidator(_readable)] = Field(
        min_length=1,
        description="Hosts that may be fetched: example.org, *.example.org for its subdomains, * for any public one.",
    )
    allow_networks: list[IPv4Network | IPv6Network] = Field(
        default=[],
        description="Private networks into which hosts of the allow-list may lead; those that only * covers may not.",
    )
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = Field(
        default=[80, 443], min_length=1, description="TCP ports that may be dialled."
    )
    timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=300,
        allow_inf_nan=False,
        description="Seconds that a fetch may take, redirects included.",
    )
    most_bytes: int = Field(
        default=2_000_000,
        ge=1000,
        le=50_000_000,
        description="Bytes of a page that are read at most, as sent and as decompressed; the rest is left out.",
    )
    most_characters: int = Field(
        default=8000, ge=100, le=100_000, description="Characters of a page's text that the model is given."
    )
    most_redirects: int = Field(
        default=5,
        ge=0,
        le=20,
        description="Redirects that are followed; each is checked like the first address.",
    )
    ca_file: Path | None = Field(
        default=None,
        description="PEM file of certificate authorities to trust besides the system's, for private sites.",
    )
