"""The network of each layout, by its name."""

from __future__ import annotations

from torch import nn

from amn.config import PARAMETERS, ModelConfig
from amn.errors import ConfigError
from amn.model.network import BoundedAMN, CardAMN, PublishedAMN, count_parameters
from amn.model.recurrent import BoundedGRU, GRUStack, TransformerPredictor
from amn.model.retrieval import RetrievalAMN
from amn.model.stacked import StackedAMN

_LAYOUTS: dict[str, type[nn.Module]] = {
    "card": CardAMN,
    "published": PublishedAMN,
    "bounded": BoundedAMN,
    "stacked": StackedAMN,
    "retrieval": RetrievalAMN,
    "gru": GRUStack,
    "gru-bounded": BoundedGRU,
    "transformer": TransformerPredictor,
}


def build(config: ModelConfig) -> nn.Module:
    """Make the network of a config, and check that it has the size that it promises.

    Raises:
        ConfigError: the built network has another number of parameters than its layout.
    """
    model = _LAYOUTS[config.layout](config)
    found, promised = count_parameters(model), PARAMETERS[config.layout]
    if found != promised:
        raise ConfigError(
            f"layout {config.layout} was built with {found:,} parameters and promises "
            f"{promised:,}; restore the widths of its network"
        )
    return model
