"""Raw: the pixels as they are, which a method must beat to have learnt anything that they do not already say."""

from .. import Method
from ..encoders.shallow import Pixels


class Raw(Method):
    """It needs the `Pixels` encoder, and sees no data."""

    columns = ()
    passes = 0

    def __init__(self, encoder: Pixels):
        super().__init__()
        self.encoder = encoder
