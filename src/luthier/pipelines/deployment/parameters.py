"""Parameters of deployment."""

from typing import Literal

from pydantic import Field

from luthier.configuration import Parameters


class Card(Parameters):
    """What only its owner can say about a model."""

    name: str = "Luthier model"
    """Title of the model card."""
    description: str = "not stated"
    """What it is for, in a sentence or two."""
    license: str = "not stated"
    """Licence of the tuned model, as an SPDX identifier where it has one."""
    base_license: str | None = None
    """Licence of the base model; null looks it up where the base came from a wheel."""
    limits: str = "not stated"
    """What it must not be used for, what it is known to do badly."""


class Parity(Parameters):
    """How close the packaged model must be to the evaluated one."""

    examples: int = Field(default=16, ge=1)
    """Test conversations to compare on."""
    tolerance: float = Field(default=0.02, gt=0)
    """Largest difference of a conversation's log-probability, in nats per token; two tokens closer than it may change places."""


class DeploymentParameters(Parameters):
    """Parameters of the room."""

    kind: Literal["merged", "adapter"] = "merged"
    """`merged` can be served alone; `adapter` is small and needs its base."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Numbers that merged weights are stored in; `auto` is what this machine computes in: what was evaluated is shipped."""
    signing_key: str | None = None
    """A private key (Ed25519, PEM) to sign with; null does not sign. Its password, if any, is in LUTHIER_SIGNING_PASSWORD."""
    card: Card = Field(default_factory=Card)
    """The owner's words on the model card."""
    parity: Parity = Field(default_factory=Parity)
    """The comparison of the packaged with the evaluated model."""
