"""The picture itself must be made again."""
