"""The networks that are pretrained, frozen and evaluated. `architecture` in params.yaml names one of their classes.

Every encoder maps a batch to features (N, D) and says D in `dim`; `depths` names the features (N, D') after each of its
stages, the last being those, and where there are two towers those of each.
"""
